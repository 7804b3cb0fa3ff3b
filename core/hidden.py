"""Packages that nobody finds for a while: others import them where they find them, for what is not used here."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Within it nobody finds these packages, unless they are imported already."""
    found = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(found))  # type: ignore[arg-type]  # None: such a module is not found
    try:
        yield
    finally:
        for name in found:
            del sys.modules[name]

"""Packages that nobody finds for a while: others import them where they find them, for what is not used here."""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator

_LOCK = threading.Lock()
_HIDDEN = Counter[str]()  # how many hide it at the moment: threads do so beside each other


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Within it nobody finds these packages, unless they are imported already."""
    with _LOCK:
        found = [name for name in packages if name not in sys.modules or (_HIDDEN[name] and sys.modules[name] is None)]
        _HIDDEN.update(found)
        sys.modules.update(dict.fromkeys(found))  # type: ignore[arg-type]  # None: such a module is not found
    try:
        yield
    finally:
        with _LOCK:
            _HIDDEN.subtract(found)
            for name in found:
                if not _HIDDEN[name] and sys.modules.get(name) is None:
                    sys.modules.pop(name, None)

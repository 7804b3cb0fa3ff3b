"""The browser of the tests of the page. On a machine that has none they are skipped; CI on Linux must have it."""

import os
import shutil
import sys
from typing import NoReturn

import pytest

from ..tools.screenshot import BROWSERS


def find_chromium() -> str:
    """Path of Chromium, or of a browser that is one."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    return program or leave(
        f"Chromium was not found: install it (apt-get install chromium), or put {', '.join(BROWSERS[:-1])} or {BROWSERS[-1]} on"
        " the PATH",
        is_needed=sys.platform == "linux",
    )


def leave(sentence: str, *, is_needed: bool = True) -> NoReturn:
    """End a test that lacks something: skipped, but failed under CI where that must be there (`is_needed`)."""
    if os.environ.get("CI") and is_needed:
        pytest.fail(sentence)
    pytest.skip(sentence)

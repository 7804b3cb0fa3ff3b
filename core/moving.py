"""Renaming and deleting what another program may have open: Windows refuses that as long as it has.

Virus scanners, the search index, OneDrive and the Explorer open what was just written, for a moment. ComfyUI has LoRAs that it
loaded mapped into memory, for as long as it keeps them. A folder can't be renamed while a file in it is open.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from .processes import this_machine
from .sweep import sweep_temporaries

T = TypeVar("T")
PATIENCE_S = 10.0 if os.name == "nt" else 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_HELD = {5, 32, 33, 1224}  # winerror.h: access denied, sharing violation, lock violation, a mapped file
_MAPPED = {".safetensors"}  # what other programs keep mapped


def is_held(error: OSError) -> bool:
    """Whether another program may have the file open; or it may not be changed: Windows says the same of both."""
    return isinstance(error, PermissionError) or getattr(error, "winerror", None) in _HELD


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no other process uses; `sweep.sweep_temporaries` knows it by its form."""
    return path.with_name(f".{path.name}.{os.getpid()}.{this_machine()}{secrets.token_hex(4)}.tmp")


def patiently(act: Callable[[], T], instead: Callable[[], T | None] = lambda: None) -> T:
    """Do `act`, again and again while another program has the file. `instead`: tried after each failure; None: not done.

    OSError if it never could be done, or is refused for another reason.
    """
    end, pause = time.monotonic() + PATIENCE_S, _FIRST_PAUSE_S
    while True:
        try:
            return act()
        except OSError as error:
            if not is_held(error):
                raise
            done = instead()
            if done is not None:
                return done
            if time.monotonic() >= end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def rename(source: Path, target: Path) -> Path:
    """Rename a file, or a folder with all that is in it; `target`. OSError if it can't be done."""
    return patiently(lambda: source.rename(target))


def replace(source: Path, target: Path, is_same: Callable[[], bool] | None = None) -> Path:
    """Put a file in the place of another, or of none; `target`. OSError if it can't be done.

    It is taken for done if `is_same()` says that somebody else has written the same. What another program has mapped can be
    renamed where it can't be replaced: it then gets a temporary name, by which it is removed later.
    """

    def instead() -> Path | None:
        if is_same is not None and is_same():
            return target
        return _replace_mapped(source, target) if target.suffix in _MAPPED else None

    return patiently(lambda: source.replace(target), instead=instead)


def remove(path: Path) -> None:
    """Delete a file, if it is there. OSError if it can't be done."""
    patiently(lambda: path.unlink(missing_ok=True))


def remove_folder(path: Path) -> None:
    """Delete a folder: at once out of sight. What can't be renamed, as a file in it is open, stays whole.

    What can't be deleted keeps its temporary name, and is swept later.
    """
    aside = temporary_sibling(path)
    with suppress(OSError):
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _replace_mapped(source: Path, target: Path) -> Path | None:
    """Move the old file aside, then the new one into its place; None, and all as before, if one of both can't be done."""
    if not (target.is_file() and os.access(target, os.W_OK)):  # a folder, or write-protected: nobody has it mapped
        return None
    sweep_temporaries(target.parent)
    aside = temporary_sibling(target)
    try:
        target.rename(aside)
    except OSError:
        return None
    try:
        source.rename(target)
    except OSError:
        with suppress(OSError):
            patiently(lambda: aside.rename(target))
        return None
    with suppress(OSError):
        aside.unlink()
    return target

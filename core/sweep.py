"""Removing the temporary files of processes that died while they wrote (see `moving.temporary_sibling`)."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .processes import is_running, this_machine

# .NAME.PID.TOKEN.tmp, where the token begins with the machine's six digits; those of earlier versions have none.
_NAME = re.compile(r"\..+\.(?P<pid>\d+)\.(?P<machine>[0-9a-f]{6})?[0-9a-f]{8}\.(tmp|json)")
DAY_S = 24 * 60 * 60.0


def sweep_temporaries(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Remove what dead processes left half written in `folder`, and with `recursive` below it; what was removed.

    A process of this machine is known to be dead. Of another machine, as on a network drive, and of versions that did
    not name theirs, only what is older than a day goes. Links are neither removed nor followed.
    """
    removed = []
    for entry in _entries(folder, recursive):
        if not _is_left_behind(entry):
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # open on Windows, or not ours to delete: it does no harm, and the next sweep tries again
        removed.append(path)
    return removed


def _entries(folder: Path, recursive: bool) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # not there, or not to be read: then there is nothing to sweep
        return
    for entry in entries:
        yield entry
        if recursive and not _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), recursive)


def _is_left_behind(entry: os.DirEntry[str]) -> bool:
    match = _NAME.fullmatch(entry.name)
    if match is None or entry.is_symlink():
        return False
    if match["machine"] == this_machine() and not is_running(int(match["pid"])):
        return True
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY_S
    except OSError:
        return False

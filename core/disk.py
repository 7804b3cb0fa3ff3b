"""Writing files so that they are there whole or not at all, and saying in one sentence why a disk refused."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import RunError
from .processes import this_machine
from .sweep import sweep_temporaries

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota errno
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_REPLACE_TRIES, _REPLACE_PAUSE_S = 10, 0.05


def disk_error(error: OSError, path: Path, kept: str) -> RunError:
    """The sentence for a failed write; `kept` says what is safe."""
    if error.errno in _FULL:
        free = _free_bytes(path.parent) / 1e9
        return RunError(
            f"The disk with {path.parent} is full ({free:.1f} GB free) while writing {path.name}: make room and queue "
            f"again; {kept}."
        )
    advice = "choose another folder or change its permissions" if error.errno in _FORBIDDEN else "check the disk"
    return RunError(f"{path} cannot be written ({error.strerror or error}): {advice}; {kept}.")


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no other process uses; `sweep.sweep_temporaries` knows it by its form."""
    return path.with_name(f".{path.name}.{os.getpid()}.{this_machine()}{secrets.token_hex(4)}.tmp")


def write_atomic(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    kept: str = "nothing was changed",
    is_same: Callable[[], bool] | None = None,
) -> None:
    """Write a file through a temporary one in the same folder, so that readers see the old content or the new.

    On Windows a file that another process has open cannot be replaced: this waits a moment for it, and takes it for
    done if `is_same()` says that the other one has written the same. Raises RunError if the disk is full or cannot be
    written; no partial file is left behind.
    """
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            _replace(temporary, path, is_same)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, path, kept) from error


def check_writable(folder: Path) -> None:
    """Refuse, before any work, a folder that can't be made or written to; sweep what dead processes left there."""
    sweep_temporaries(folder)
    probe = temporary_sibling(folder / "write-test")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, folder / "anything", "nothing was started") from error


def _replace(temporary: Path, path: Path, is_same: Callable[[], bool] | None) -> None:
    for attempt in range(_REPLACE_TRIES):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if is_same is not None and is_same():
                return
            if attempt == _REPLACE_TRIES - 1:
                raise
            time.sleep(_REPLACE_PAUSE_S)


def _free_bytes(folder: Path) -> int:
    existing = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return 0

"""Writing files so that they are there whole or not at all, and saying in one sentence why a disk refused."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import RunError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def free_gigabytes(path: Path) -> float:
    """Free space of the disk that holds `path`, in GB."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free / 1e9


def disk_error(error: OSError, path: Path, kept: str) -> RunError:
    """The error for the user; `kept` says what is safe and how to go on."""
    if error.errno in _FULL:
        return RunError(f"the disk is full ({free_gigabytes(path):.2f} GB free) while writing {path}: make room; {kept}.")
    if error.errno in _READ_ONLY:
        return RunError(f"{path} can't be written (read-only or no permission): choose another folder; {kept}.")
    return RunError(f"{path} can't be written ({error.strerror or error}); {kept}.")


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_atomic(path: Path, write: Callable[[Path], None], *, kept: str = "nothing was changed") -> None:
    """Let `write` make a file at a temporary name, flush it to the disk, and move it to `path` in one step.

    Raises RunError when the disk refuses; no partial file is left behind.
    """
    temporary = temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, kept) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Refuse, before any work, a folder that can't be made or written to."""
    probe = folder / f".write-test-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        raise disk_error(error, folder, "nothing was started") from error
    finally:
        probe.unlink(missing_ok=True) if folder.is_dir() else None

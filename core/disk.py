"""Writing files so that they are there whole or not at all, and saying in one sentence why a disk refused."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import START_AGAIN, RunError
from .moving import is_held, rename, replace, temporary_sibling
from .paths import too_long
from .sweep import sweep_temporaries

_FORBIDDEN = {errno.EACCES, errno.EPERM}
_QUOTA = getattr(errno, "EDQUOT", None)  # Windows has no such errno
_CHUNK = 2**20
_LARGE = 2**16  # bytes, from which on a second thread is worth its while
_HASHING = ThreadPoolExecutor(4, thread_name_prefix="hash")  # has no thread before one is needed


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's part of it, has no room left."""
    return error.errno is not None and error.errno in (errno.ENOSPC, _QUOTA)


def disk_error(error: OSError, path: Path, kept: str) -> RunError:
    """The sentence for a failed write; `kept` says what is safe."""
    folder, name = path.parent, path.name
    if error.errno == errno.ENOSPC:
        free = (free_bytes(folder) or 0) / 1e9
        return RunError(
            f"The disk with {folder} is full ({free:.1f} GB free) while writing {name}: make room and start again; {kept}.",
            about=START_AGAIN,
        )
    if is_full(error):
        return RunError(
            f"Your quota on the disk with {folder} is used up, while writing {name}: delete files there, or ask for more, and "
            f"start again; {kept}.",
            about=START_AGAIN,
        )
    if error.errno == errno.EROFS:
        return RunError(
            f"{path} cannot be written as its disk is read-only, which systems make it after an error: check the disk, or "
            f"choose another folder; {kept}."
        )
    if error.errno == errno.EIO:
        return RunError(
            f"{path} cannot be written because its disk reports an error ({error.strerror or error}): check the disk, its "
            f"cable or its network, and copy what is there; {kept}."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return RunError(
            f"{path} cannot be written, as a file is where a folder is wanted: choose another folder; {kept}."
        )
    length = too_long(temporary_sibling(path)) if isinstance(error, FileNotFoundError) and path.name else ""
    if length:
        return RunError(f"{path} cannot be written, as its path {length}; {kept}.")
    if getattr(error, "winerror", None) is not None and is_held(error):  # Linux has no such thing
        return RunError(
            f"{path} cannot be changed ({error.strerror}): another program has it open, or you may not change it. Close what "
            "shows or scans it (ComfyUI keeps LoRAs open that it has loaded: load others, or start it anew), or choose another "
            f"folder; {kept}."
        )
    advice = "choose another folder or change its permissions" if error.errno in _FORBIDDEN else "check the disk"
    return RunError(f"{path} cannot be written ({error.strerror or error}): {advice}; {kept}.")


class HashingWriter:
    """A file that is written from its start to its end, and the size and sha256 of what was given to it.

    What is large is hashed on one thread while it is written by another: each takes about as long.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """As the file's."""
        self.size += len(data)
        if len(data) < _LARGE:
            self._hash.update(data)
            return self._file.write(data)
        hashed = _HASHING.submit(self._hash.update, data)
        try:
            return self._file.write(data)
        finally:
            hashed.result()

    def flush(self) -> None:
        """As the file's."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._hash.hexdigest()


def file_digest(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file, read piece by piece. OSError if it can't be read."""
    found, size = hashlib.sha256(), 0
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(memoryview(buffer)[:count])
            size += count
    return size, found.hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder `x` to `damaged-x`, or damaged-x-2 and so on; where it is now. RunError if it can't."""
    number, target = 1, path.with_name(f"damaged-{path.name}")
    while target.exists():
        number += 1
        target = path.with_name(f"damaged-{path.name}-{number}")
    try:
        return rename(path, target)
    except OSError as error:
        raise disk_error(error, path, "it is damaged, and could not be set aside") from error


def check_room(folder: Path, needed: int, what: str, advice: str) -> str | None:
    """Compare the bytes that will be written to `folder` with what is free there.

    RunError where they cannot fit; a sentence of warning where they take more than half of it. `what` takes them, and
    `advice` says how to need less.
    """
    free = free_bytes(folder)
    if free is None:
        return None
    told = f"{what} would take {gigabytes(needed)}, and {gigabytes(free)} are free on the disk with {folder}"
    if needed > free:
        raise RunError(f"{told}: {advice}, or make room.")
    return f"{told}: more than half of it. If that is not meant, {advice}." if needed > free / 2 else None


def gigabytes(size: int) -> str:
    """A size for people: 312 GB, 0.4 GB, 2 MB."""
    if size < 5e7:
        return f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


def write_atomic(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    kept: str = "nothing was changed",
    is_same: Callable[[], bool] | None = None,
) -> None:
    """Write a file through a temporary one in the same folder, so that readers see the old content or the new.

    On Windows a file that another process has open cannot be replaced: this waits for it, and takes it for done if
    `is_same()` says that the other one has written the same (see `moving`). Raises RunError if the disk is full or cannot be
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
            replace(temporary, path, is_same)
        finally:
            with suppress(OSError):  # on Windows, where a scanner has it open: it is swept later
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
            with suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        place = folder / "a file" if is_full(error) else folder
        raise disk_error(error, place, "nothing was started") from error


def free_bytes(folder: Path) -> int | None:
    """Bytes free where a folder lies, or would lie; None where the system does not say."""
    existing = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return None

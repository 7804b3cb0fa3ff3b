"""A disk that refuses from some write on: really full, where mounting one is permitted, or through Python's own calls."""

import builtins
import contextlib
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REFUSALS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "error": errno.EIO, "read-only": errno.EROFS}


class FaultyDisk:
    """Lets so many acts of writing below a folder through, then refuses the next `length` of them."""

    def __init__(self, root: Path, number: int, allowed: int, length: int) -> None:
        self._root, self._errno = os.fspath(root), number
        self._allowed, self._length = allowed, length
        self.count = self.refused = 0

    def pass_through(self, path: Any) -> None:
        """Count an act on `path`; OSError if it is refused."""
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(self._root):
            return
        self.count += 1
        if self.count <= self._allowed:
            return
        if self._length > 0:
            self._length -= 1
            self.refused += 1
            raise OSError(self._errno, os.strerror(self._errno), os.fspath(path))


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, path: Any, disk: FaultyDisk) -> None:
        self._file, self._path, self._disk = file, path, disk

    def write(self, data: Any) -> int:
        self._disk.pass_through(self._path)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def refusing(disk: FaultyDisk) -> Iterator[None]:
    """Python's calls go through `disk` as long as this lasts."""
    plain_open = io.open

    def open_counted(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain_open(path, mode, *args, **kwargs)
        disk.pass_through(path)
        return _File(plain_open(path, mode, *args, **kwargs), path, disk)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Any, *args: Any, **kwargs: Any) -> Any:
            disk.pass_through(path)
            return call(path, *args, **kwargs)

        return act

    names = ("mkdir", "rename", "replace")
    kept = {name: getattr(os, name) for name in names}
    io.open = builtins.open = open_counted
    for name, call in kept.items():
        setattr(os, name, counted(call))
    try:
        yield
    finally:
        io.open = builtins.open = plain_open
        for name, call in kept.items():
            setattr(os, name, call)


def mount(place: Path, size: int) -> bool:
    """Put a file system of `size` bytes at `place`; False where that is not permitted."""
    command = shutil.which("mount")
    place.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", os.fspath(place)]
    return command is not None and not subprocess.run([command, *options], check=False, capture_output=True).returncode


def fill(place: Path, left: int) -> None:
    """Take all room of a mounted file system but `left` bytes, in whole pages."""
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(place / "filler", max(0, (place / "filler").stat().st_size - left))


def unmount(place: Path) -> None:
    """Take it away."""
    subprocess.run(["umount", "-l", os.fspath(place)], check=True)

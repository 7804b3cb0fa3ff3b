"""Locks between processes, that end with their holder.

A lock is held by an open file, which the system frees when the holder dies. Network drives know not all of these kinds, so
three are tried, in the same order by everybody: `flock`, POSIX record locks, and at last a file that is there while
somebody holds the lock and says who.
"""

import errno
import os
import threading
from pathlib import Path
from typing import BinaryIO

from .errors import RunError
from .lock_file import LockFile

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
# What file systems say that have no locks of a kind, or whose server does not answer for them.
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EIO, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

_own_records: set[tuple[int, int]] = set()  # device and inode of the files that this process has a record lock on
_changing = threading.Lock()

if os.name == "nt":
    import msvcrt

    _HELD.add(getattr(errno, "EDEADLOCK", 36))

    def _lock_byte(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

    _KINDS = (_lock_byte,)
else:
    import fcntl

    def _begin_anew() -> None:
        """In a child after a fork: record locks are not inherited, and no other thread is there that could be changing."""
        global _changing
        _own_records.clear()
        _changing = threading.Lock()

    os.register_at_fork(after_in_child=_begin_anew)

    def _flock(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _lock_record(file: BinaryIO) -> None:
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        _own_records.add(_inode(os.fstat(file.fileno())))

    _KINDS = (_flock, _lock_record)


class FileLock:
    """An exclusive lock on a path. Not re-entrant; closing or dying releases it."""

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None
        self._lock_file: LockFile | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; False if another process, or another FileLock, holds it.

        RunError if the file can't be made or opened, or the disk knows no locks: then it is not known who holds what.
        """
        with _changing:
            if self._is_own_record():
                return False
            file = self._open()
            try:
                taken = self._take(file)
            except BaseException:
                file.close()
                raise
            if not taken:
                file.close()
                return False
            self._file = file
            return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next holder."""
        with _changing:
            if self._file is not None:
                _own_records.discard(_inode(os.fstat(self._file.fileno())))
                self._file.close()
                self._file = None
            if self._lock_file is not None:
                self._lock_file.release()
                self._lock_file = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    @property
    def is_lost(self) -> bool:
        """Whether the file of a lock that this object holds is gone: others could then lock another of the same path."""
        if self._file is None:
            return False
        try:
            return _inode(self.path.stat()) != _inode(os.fstat(self._file.fileno()))
        except OSError:
            return True

    def holder(self) -> str:
        """Who holds the lock, and what to do if that is no more, as a sentence; empty where the system frees the lock."""
        return LockFile(self.path).holder()

    def _open(self) -> BinaryIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self.path.open("ab")
            except PermissionError:  # another user's file: to lock it, looking at it is enough on local disks
                return self.path.open("rb")
        except OSError as error:
            raise RunError(
                f"The lock {self.path} can't be opened ({error.strerror or error}): it may belong to another user, or the "
                "folder can't be written. Delete the file, or choose a folder of your own (for the lock of a device: by "
                "the environment variable TMPDIR, on Windows TEMP)."
            ) from error

    def _take(self, file: BinaryIO) -> bool:
        for lock in _KINDS:
            try:
                lock(file)
            except OSError as error:
                if error.errno in _HELD:
                    return False
                if error.errno not in _UNSUPPORTED:
                    raise RunError(
                        f"{self.path} can't be locked ({error.strerror or error}): check the disk, or choose a folder on a "
                        "local one."
                    ) from error
            else:
                return True
        lock_file = LockFile(self.path)
        if not lock_file.acquire():
            return False
        self._lock_file = lock_file
        return True

    def _is_own_record(self) -> bool:
        """Whether this process has a record lock on the file: to open and close it again would free that lock."""
        if not _own_records:
            return False
        try:
            return _inode(self.path.stat()) in _own_records
        except OSError:
            return False


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino

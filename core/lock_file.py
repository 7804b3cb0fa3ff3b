"""A lock that is a file: there while somebody holds it. For disks that have no other locks, such as some network drives."""

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from .errors import RunError
from .processes import birth, is_running, this_machine

UNFINISHED_S = 60.0  # a file without content is as old as this only if its maker died before writing it


class LockFile:
    """The file PATH.held, which names its holder. It is taken over from a process of this machine that is gone.

    Of another machine it can't be known whether the holder still lives: such a file has to be deleted by hand.
    """

    def __init__(self, path: Path):
        self.path = path.with_name(f"{path.name}.held")
        self._handle: int | None = None  # on Windows it stays open: closing deletes the file

    def acquire(self) -> bool:
        """Make the file; False if somebody holds it. RunError if the disk refuses."""
        try:
            if self._create():
                return True
            try:
                found = self._read()
            except PermissionError:
                if os.name == "nt":  # where the holder has it open
                    return False
                raise
            if found is None or not self._is_left_behind(found):
                return found is None and self._create()
            return self._remove(found) and self._create()
        except OSError as error:
            raise RunError(
                f"{self.path} can't be written ({error.strerror or error}), and the disk has no other locks: choose a folder "
                "on a local disk."
            ) from error

    def release(self) -> None:
        """Remove the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        with contextlib.suppress(OSError):  # gone with its folder, or the drive is: it says who held it
            self.path.unlink(missing_ok=True)

    def holder(self) -> str:
        """Who holds it and what to do, as a sentence; empty if nobody does."""
        try:
            found = self._read()
        except OSError:
            return ""
        if found is None:
            return ""
        holder = _parse(found)
        return (
            f"{self.path} says that process {holder.get('pid', '?')} on {holder.get('host', '?')} holds it since "
            f"{holder.get('since', '?')}: if nothing trains there any more, delete that file."
        )

    def _create(self) -> bool:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        try:
            handle = os.open(self.path, flags | getattr(os, "O_TEMPORARY", 0), 0o644)
        except FileExistsError:
            return False
        except PermissionError:  # Windows, while another process deletes it
            if self.path.exists():
                return False
            raise
        self._handle = handle
        try:
            os.write(handle, _own_words())
            os.fsync(handle)
        except OSError:
            self.release()
            raise
        if os.name != "nt":
            os.close(handle)
            self._handle = None
        return True

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def _is_left_behind(self, words: bytes) -> bool:
        holder = _parse(words)
        if not holder:
            return time.time() - self.path.stat().st_mtime > UNFINISHED_S
        pid = holder.get("pid")
        if holder.get("machine") != this_machine() or not isinstance(pid, int):
            return False
        return not is_running(pid) or holder.get("birth") != birth(pid)

    def _remove(self, judged: bytes) -> bool:
        """Remove the file that was judged; whether it was that one, and not one that somebody made since."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)  # of several who try, one succeeds
        except FileNotFoundError:
            return True
        if aside.read_bytes() == judged:
            aside.unlink()
            return True
        aside.rename(self.path)
        return False


def _own_words() -> bytes:
    pid = os.getpid()
    words = {
        "host": socket.gethostname(),
        "machine": this_machine(),
        "pid": pid,
        "birth": birth(pid),
        "since": time.strftime("%Y-%m-%d %H:%M"),
        "token": secrets.token_hex(8),
    }
    return json.dumps(words).encode()


def _parse(words: bytes) -> dict[str, Any]:
    try:
        found = json.loads(words)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

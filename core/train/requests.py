"""What may be asked of a run while it trains: a checkpoint now, a preview now. A request is an empty file in its folder.

A stop is asked for in the same way; see `RunFolder.request_stop`.
"""

from contextlib import suppress
from pathlib import Path

from ..disk import disk_error
from ..moving import patiently, remove

SAVE_FILE, PREVIEW_FILE = "save-now", "preview-now"
REQUEST_FILES = (SAVE_FILE, PREVIEW_FILE)
_Which = tuple[int, int, int]  # of files of one name: inode, time, size


def request(folder: Path, name: str) -> None:
    """Ask the run in `folder` for one of REQUEST_FILES, after the step that it is in. RunError if the disk refuses."""
    path = folder / name
    try:
        patiently(path.touch)  # one that was answered may be held by a scanner until it can go
    except OSError as error:
        raise disk_error(error, path, "nothing was asked for") from error


def forget_requests(folder: Path) -> None:
    """Those that nobody has answered: they were meant for a process that has ended."""
    for name in REQUEST_FILES:
        remove(folder / name)


class Requests:
    """The requests of one name to one run, each of which is answered once.

    On Windows a file that a scanner has open can't be deleted. What was answered is therefore remembered, and deleted as soon
    as it can be; whoever asks again touches the file, which makes another request of it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: one of REQUEST_FILES."""
        self._path = folder / name
        self._answered: _Which | None = None

    def is_there(self) -> bool:
        """Whether there is one that was not answered."""
        found = self._which()
        if found is None or found != self._answered:
            return found is not None
        self._delete()
        return False

    def answer(self) -> None:
        """Take the one that is there for answered."""
        self._answered = self._which()
        self._delete()

    def _which(self) -> _Which | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _delete(self) -> None:
        """Without waiting: the run is between two steps, and looks again after the next."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

"""What may be asked of a run while it trains: a checkpoint now, a preview now. A request is an empty file in its folder.

A stop is asked for in the same way; see `RunFolder.request_stop`.
"""

from pathlib import Path

from ..moving import remove

SAVE_FILE, PREVIEW_FILE = "save-now", "preview-now"
REQUEST_FILES = (SAVE_FILE, PREVIEW_FILE)


def request(folder: Path, name: str) -> None:
    """Ask the run in `folder` for one of REQUEST_FILES, after the step that it is in. OSError if the disk refuses."""
    (folder / name).touch()


def forget_requests(folder: Path) -> None:
    """Those that nobody has answered: they were meant for a process that has ended."""
    for name in REQUEST_FILES:
        remove(folder / name)

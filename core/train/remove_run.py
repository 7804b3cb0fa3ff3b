"""Deleting a run folder: what would be lost, and the deletion, while nobody trains in it."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..disk import disk_error
from ..errors import RunError
from ..locks import FileLock
from ..moving import rename
from ..names import in_short, is_plain
from ..words import counted
from .catalogue import size_of
from .claim import placing
from .find_run import claim_lock
from .run_folder import RunFolder

_MOST_BYTES = 255  # of a name, on most disks
_TRASH = ".deleted-"
PATIENCE_S = 3.0  # a run that has just ended holds its folder for a moment longer


@dataclass(frozen=True)
class FolderContents:
    """What a run folder holds. `size` in bytes."""

    size: int
    checkpoints: int
    previews: int
    loras: tuple[str, ...]

    def __str__(self) -> str:
        files = [
            *([counted(self.checkpoints, "checkpoint")] if self.checkpoints else []),
            *([counted(self.previews, "preview")] if self.previews else []),
            *([f"the LoRA {name}" for name in self.loras]),
            "its settings, curve and log",
        ]
        return ", ".join(files)


def contents(folder: RunFolder) -> FolderContents:
    """What a run folder holds now."""
    previews = len(list((folder.path / "previews").glob("step-*.webp")))
    loras = tuple(sorted(path.name for path in folder.path.glob("*.safetensors")))
    return FolderContents(size_of(folder.path), len(folder.checkpoints()), previews, loras)


def remove_run(runs: Path, name: str) -> None:
    """Delete the run folder `name` of `runs`, for good.

    RunError, and nothing is changed, if that is no run folder right below `runs`, is a link, or is trained in. RunError, too,
    if files of it can't be deleted: then it is no run any more, and the sentence says where they are.
    """
    folder = RunFolder(runs / name)
    if not is_plain(name) or len(os.fsencode(name)) > _MOST_BYTES or folder.path.parent != runs:
        raise RunError(f"'{in_short(name)}' is not the name of a run folder: nothing was deleted.")
    if folder.path.is_symlink() or folder.path.resolve() != runs.resolve() / name:
        raise RunError(f"{name} is a link to another place: delete it there. Nothing was deleted.")
    if not folder.is_there:
        raise RunError(f"there is no run {name}: it may have been deleted already.")
    with placing(runs), _nobody_in(folder):
        aside = runs / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            rename(folder.path, aside)
        except OSError as error:  # on Windows: a file of it is open
            raise disk_error(error, folder.path, "nothing was deleted") from error
    with suppress(OSError):  # first, so that what may remain is no run
        RunFolder(aside).job_path.unlink(missing_ok=True)
    for left in runs.glob(f"{_TRASH}*"):  # this one, and what an earlier deletion could not remove
        with suppress(OSError):
            shutil.rmtree(left)
    if aside.exists():
        raise RunError(f"{name} is no run any more, but some of its files can't be deleted: remove {aside} by hand.")


@contextmanager
def _nobody_in(folder: RunFolder) -> Iterator[None]:
    """RunError if somebody has the folder; as long as this lasts, nobody comes into it."""
    locks = [claim_lock(folder), folder.lock()]
    try:
        end = time.monotonic() + PATIENCE_S
        while not _taken(locks):
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
            raise RunError(f"{folder.path.name} is being trained at the moment: stop it first. Nothing was deleted.")
        if os.name == "nt":  # which moves no folder with open files; most who would come in wait for `placing`
            _release(locks)
        yield
    finally:
        _release(locks)


def _taken(locks: list[FileLock]) -> bool:
    """Whether all of them are had now; else none."""
    if all(lock.acquire() for lock in locks):
        return True
    _release(locks)
    return False


def _release(locks: list[FileLock]) -> None:
    for lock in locks:
        lock.release()

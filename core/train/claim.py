"""Taking a run folder for a training, so that no other can come into it, and giving it what another run did already."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..disk import disk_error, write_atomic
from ..errors import RunError
from ..locks import FileLock
from ..moving import rename, temporary_sibling
from ..settings.job import Job
from ..words import counted
from .events import Event, EventReader, EventWriter, format_event
from .find_run import Origin, belongs_to, claim_lock, find_origins, find_run, steps_done
from .kept_plan import copy_kept_plan
from .run_folder import RunFolder
from .sound import damage

_POLL_S = 0.05
_PATIENCE_S = 0.5


class InUseError(RunError):
    """The folder of this training is being trained in."""

    def __init__(self, folder: RunFolder, lock: FileLock):
        self.folder = folder
        message = f"{folder.path} is being trained by another process: wait for it, or stop it there."
        super().__init__(f"{message} {lock.holder()}".rstrip())


@dataclass
class Claim:
    """A run folder with its job, to start a worker on. Held until `release`, or the end of this process."""

    folder: RunFolder
    origin: Origin | None  # what it was given of another run
    lock: FileLock

    def release(self) -> None:
        """Let others have the folder."""
        self.lock.release()


def claim_run(runs: Path, job: Job) -> Claim:
    """Find or make the folder of this training in `runs`, and write the job there.

    What another run of the same content did is copied: its furthest checkpoint that is sound, and its losses up to there.
    InUseError if somebody has the folder at the moment; RunError if it can't be written, or is of a newer version.
    """
    with placing(runs):
        folder = find_run(runs, job)
        return _claim(folder, job, find_origins(runs, job, folder))


def claim_folder(folder: RunFolder, job: Job) -> Claim:
    """As `claim_run`, in this folder, wherever it lies. RunError if the folder belongs to another training."""
    if not belongs_to(folder, job):
        done = counted(steps_done(folder), "step is", "steps are")
        raise RunError(
            f"{folder.path} belongs to another training: {folder.read_job().name}, of which {done} done. {job.name} with "
            f"{counted(job.loop.steps, 'step')} needs a folder of its own: train it from its recipe or its graph, or raise its "
            "steps."
        )
    return _claim(folder, job, [])


@contextlib.contextmanager
def placing(runs: Path) -> Iterator[None]:
    """One at a time chooses among the folders of `runs`."""
    lock = FileLock(runs / ".placing.lock")
    while not lock.acquire():
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _claim(folder: RunFolder, job: Job, origins: Sequence[Origin]) -> Claim:
    lock, workers = claim_lock(folder), folder.lock()
    if not _taken(lock):
        raise InUseError(folder, lock)
    try:
        if not _taken(workers):  # a worker that was left behind, or one of an earlier version
            raise InUseError(folder, workers)
        try:
            folder.refuse_newer_job()
            folder.write_job(job)
            origin = _start_from_furthest(folder, origins)
        finally:
            workers.release()
    except BaseException:
        lock.release()
        raise
    return Claim(folder, origin, lock)


def _taken(lock: FileLock) -> bool:
    """Whether the lock is had: who looks whether somebody trains holds it for a moment (`find_run.is_in_use`)."""
    end = time.monotonic() + _PATIENCE_S
    while not lock.acquire():
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_S)
    return True


def _start_from_furthest(folder: RunFolder, origins: Sequence[Origin]) -> Origin | None:
    return next((origin for origin in origins if _start_from(folder, origin)), None)


def _start_from(folder: RunFolder, origin: Origin) -> bool:
    """Give the folder a checkpoint in one move, after the losses up to it; False if it went away meanwhile, or is damaged."""
    if damage(origin.checkpoint, remember=False):
        return False
    target = folder.checkpoint_store.free_path(origin.step)
    known = max((step for step, _ in folder.checkpoints()), default=0)
    aside = temporary_sibling(target)
    try:
        aside.mkdir(parents=True)
        if not _copy_files(origin.checkpoint, aside):
            return False
        _tell(folder, origin, _losses(origin, known))
        copy_kept_plan(origin.run.path, folder.path)
        rename(aside, target)
    except OSError as error:
        raise disk_error(error, target, f"{origin.run.path} was not changed") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _copy_files(source: Path, target: Path) -> bool:
    """False if the source is not whole: its run keeps only the newest checkpoints, and may be removing it."""
    try:
        for file in _files(source):
            with file.open("rb") as stream:
                write_atomic(target / file.name, lambda out, stream=stream: shutil.copyfileobj(stream, out))
        return {file.name for file in _files(source)} == {file.name for file in target.iterdir()}
    except FileNotFoundError:
        return False


def _files(checkpoint: Path) -> list[Path]:
    return [file for file in checkpoint.iterdir() if not file.name.startswith(".")]


def _losses(origin: Origin, known: int) -> list[Event]:
    """What the other run's diary says of the steps after `known` up to the checkpoint, in the order of the steps."""
    told: dict[tuple[int, str], Event] = {}
    for event in EventReader(origin.run.events_path).read():
        step, kind = event.get("step"), event.get("event")
        if not isinstance(step, int):
            continue
        if kind == "start":  # what an attempt did beyond it was done again
            told = {key: value for key, value in told.items() if key[0] <= step}
        elif kind in ("step", "validation") and step <= origin.step and (step > known or known == 0):
            told[step, kind] = event
    return [told[key] for key in sorted(told)]


def _tell(folder: RunFolder, origin: Origin, events: Sequence[Event]) -> None:
    """Write into the diary where the run comes from, and the losses up to there, all at once."""
    EventWriter(folder.events_path)  # ends a line that was cut short
    told = {"event": "origin", "time": round(time.time(), 3), "run": origin.run.path.name, "step": origin.step}
    lines = [format_event(event) for event in ({**told, "message": str(origin)}, *events)]
    try:
        with folder.events_path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, folder.events_path, f"{origin.run.path} was not changed") from error

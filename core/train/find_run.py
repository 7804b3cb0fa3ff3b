"""Which folder belongs to which training. A folder belongs to one, for ever: that of its name, its content and its length.

The content is the job's key, with which the name of every run folder ends. A training may be made longer in its folder,
but what needs fewer steps than were done there, or has another name, gets a folder of its own.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.links import is_file
from ..locks import FileLock
from ..safe_json import read_object
from ..settings.job import Job
from .events import EventReader
from .run_folder import RunFolder

_TAIL_BYTES = 2**16
_LATEST = 2.0**36  # seconds since the epoch that every system's calendar knows


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run, from which a training may start: being of the same content, it is the same to the bit."""

    run: RunFolder
    step: int
    checkpoint: Path

    def __str__(self) -> str:
        return f"starts from step {self.step} of the run {self.run.path.name}"


def find_run(runs: Path, job: Job) -> RunFolder:
    """The folder of this training: its own from before, else the path of a new one, which is not made yet."""
    steps = job.loop.steps
    own = [folder for folder in runs_of(runs, job.key) if belongs_to(folder, job)]
    if not own:
        return RunFolder(_new_path(runs, job))
    return max(own, key=lambda folder: (folder.finished_lora(steps) is not None, steps_done(folder), folder.path.name))


def find_origins(runs: Path, job: Job, own: RunFolder) -> list[Origin]:
    """Checkpoints in other folders that are further than those of `own`, and not beyond the job's length; the furthest first.

    Which of them are damaged shows when one is taken.
    """
    newest = max((step for step, _ in own.checkpoints()), default=0)
    found = [
        Origin(folder, step, path)
        for folder in runs_of(runs, job.key)
        if folder.path != own.path
        for step, path in folder.checkpoints()
        if newest < step <= job.loop.steps
    ]
    return sorted(found, key=lambda origin: (-origin.step, origin.run.path.name))


def runs_of(runs: Path, key: str) -> Iterator[RunFolder]:
    """The folders of all trainings with this content, by name."""
    return (RunFolder(path) for path in sorted(runs.glob(f"*_{key}")) if path.is_dir())


def belongs_to(folder: RunFolder, job: Job) -> bool:
    """Whether the folder, of the same content, is this training's own."""
    return _is_of_name(folder, job) and _fits_length(folder, job)


def steps_done(folder: RunFolder) -> int:
    """How far the training in this folder got: by its checkpoints, its result and its diary."""
    result = (read_object(folder.result_path) or {}).get("step")
    newest = max((step for step, _ in folder.checkpoints()), default=0)
    return max(newest, result if isinstance(result, int) else 0, _last_step(folder.events_path))


def progress_of(folder: RunFolder) -> tuple[int, int]:
    """The last step that the diary of this folder tells of, and that of its newest checkpoint; 0 for none."""
    return _last_step(folder.events_path), max((step for step, _ in folder.checkpoints()), default=0)


def began(folder: RunFolder) -> float | None:
    """When the run began, in seconds since the epoch: the time of its diary's first line. None if that is not known."""
    if not is_file(folder.events_path):
        return None
    try:
        with folder.events_path.open("rb") as file:
            time = json.loads(file.readline(_TAIL_BYTES))["time"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(time) if isinstance(time, (int, float)) and 0 <= time < _LATEST else None


def claim_lock(folder: RunFolder) -> FileLock:
    """The lock that a folder's owner holds, from before its job is written until its worker has ended."""
    return FileLock(folder.path / ".claim")


def _is_of_name(folder: RunFolder, job: Job) -> bool:
    """By its job; where that is gone or can't be read, by the folder's own name."""
    name = (read_object(folder.job_path) or {}).get("name")
    if isinstance(name, str):
        return name == job.name
    stem = re.escape(f"{job.name}_{job.stage}")
    return re.fullmatch(rf"{stem}(_\d+steps)?(_\d+)?_{job.key}", folder.path.name) is not None


def _fits_length(folder: RunFolder, job: Job) -> bool:
    steps = job.loop.steps
    named = re.search(rf"_{job.stage}_(\d+)steps(_\d+)?_{job.key}$", folder.path.name)
    if named and int(named[1]) != steps:
        return False
    if steps_done(folder) > steps:
        return False
    loop = (read_object(folder.job_path) or {}).get("loop")
    planned = loop.get("steps") if isinstance(loop, dict) else None
    return not (isinstance(planned, int) and planned > steps and is_in_use(folder))


def is_in_use(folder: RunFolder) -> bool:
    """Whether somebody trains in the folder, or is about to."""
    for lock in (claim_lock(folder), folder.lock()):
        if lock.path.exists():
            if not lock.acquire():
                return True
            lock.release()
    return False


def _new_path(runs: Path, job: Job) -> Path:
    """NAME_STAGE_KEY; with the length where a folder of this name goes beyond it; with a number where that is taken."""
    stem = f"{job.name}_{job.stage}"
    if any(_is_of_name(folder, job) for folder in runs_of(runs, job.key)):
        stem += f"_{job.loop.steps}steps"
    numbered = (f"{stem}_{number}_{job.key}" for number in itertools.count(2))
    return next(runs / name for name in itertools.chain([f"{stem}_{job.key}"], numbered) if not (runs / name).exists())


def _last_step(diary: Path) -> int:
    """The step that the diary ends with, read from its end."""
    try:
        size = diary.stat().st_size
    except OSError:
        return 0
    reader, window = EventReader(diary), _TAIL_BYTES
    while True:
        reader.position = max(0, size - window)
        for event in reversed(reader.read()):
            if event.get("event") in ("start", "step") and isinstance(event.get("step"), int):
                return event["step"]
        if window >= size:
            return 0
        window *= 16

"""All runs of a folder, at a glance. Of a diary only the end is read, and what has not changed is not read again.

A diary of a million steps has 200 MB, and a folder may hold hundreds of runs: whoever lists them looks at the times of a few
files first, and reads a run again only where one of these is another than before.
"""

import os
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ..data.links import is_file
from ..errors import RunError
from ..safe_json import as_table, read_object
from .events import RunHistory, parse_event
from .find_run import began, is_in_use
from .preview_folder import PreviewFolder
from .run_folder import RunFolder
from .sound import damage

TAIL_BYTES = 2**14  # of a diary: some 100 lines
MOST_TAIL_BYTES = 2**20  # where the newest held-out loss, or the newest step, lies further back
GONE = "the training process has ended: resume the run, or delete it"
_GOING = ("waiting", "training")
_VALIDATION = b'"event": "validation"'
_WATCHED = ("job.json", "events.jsonl", "result.json", "workflow.json", "", "checkpoints", "previews")
_MOST_SENTENCE = 300
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run in the list. Times in seconds since the epoch, or in seconds; `size` in bytes on the disk."""

    folder: Path
    name: str
    stage: str
    state: str  # as `RunHistory.state`
    why: str = ""  # of a run that failed, whose process is gone, or that has a damaged checkpoint: one sentence
    step: int = 0
    steps: int = 0
    loss: float | None = None
    held_out: float | None = None
    seconds_per_step: float | None = None
    began: float | None = None
    changed: float = 0.0
    size: int = 0
    preview: tuple[int, str] | None = None  # the newest, as `PreviewFolder.videos` has them
    has_workflow: bool = False
    latents: str = ""  # the file of the first sample
    model: str = ""


class Catalogue:
    """The runs of a folder, as they are whenever `entries` is asked. For several threads."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._lock = runs, threading.Lock()
        self._known: dict[Path, tuple[_Stamp, Entry]] = {}

    def entries(self) -> list[Entry]:
        """All runs, the one that changed last first. Links to folders elsewhere are runs, too."""
        with self._lock:
            known, self._known = self._known, {}
            for path in _folders(self._runs):
                stamp = _stamp(path)
                before = known.get(path)
                entry = before[1] if before and before[0] == stamp else read_entry(RunFolder(path))
                self._known[path] = stamp, entry
                if before and before[0] == stamp and before[1].why == GONE:
                    continue  # who takes such a run up writes its job first
                if entry.state in _GOING and not _is_in_use(RunFolder(path)):
                    self._known[path] = stamp, replace(entry, state="stopped", why=GONE)
            entries = [entry for _, entry in self._known.values()]
        return sorted(entries, key=lambda entry: (-entry.changed, entry.folder.name))


def read_entry(folder: RunFolder) -> Entry:
    """One run, from its files alone: a process that is gone is not noticed. Damaged files leave their fields empty."""
    job = read_object(folder.job_path) or {}
    data, loop = as_table(job.get("data")), as_table(job.get("loop"))
    samples = data.get("samples")
    first = as_table(samples[0]) if isinstance(samples, list) and samples else {}
    steps = _number(loop.get("steps"))
    history, held_out, seconds = _end_of(folder.events_path)
    done = _number((read_object(folder.result_path) or {}).get("step"))
    step = max(_number(history.last_step.get("step")), done)
    state = history.state if job else "error"
    if state == "finished" and step < steps:  # made longer, and not begun anew yet
        state = "stopped"
    why = sentence(history.message, folder) if state == "error" else ""
    videos = PreviewFolder.of(folder).videos()
    loss = history.losses.get(step)
    return Entry(
        folder=folder.path,
        name=_text(job.get("name")) or folder.path.name,
        stage=_text(job.get("stage")),
        state=state,
        why=(why or _damaged(folder)) if job else "its job.json is damaged or was changed",
        step=step,
        steps=steps,
        loss=loss,
        held_out=held_out,
        seconds_per_step=seconds,
        began=began(folder),
        changed=_changed(folder),
        size=size_of(folder.path),
        preview=videos[-1] if videos else None,
        has_workflow=is_file(folder.workflow_path),
        latents=_text(first.get("latents_path")),
        model=_text(as_table(job.get("model")).get("label")),
    )


def _damaged(folder: RunFolder) -> str:
    """Which checkpoints are not what was written, as far as that is seen without reading them."""
    steps = [str(step) for step, path in folder.checkpoints() if damage(path, read=False)]
    if not steps:
        return ""
    which = f"checkpoint of step {steps[0]} is" if len(steps) == 1 else f"checkpoints of steps {', '.join(steps)} are"
    return f"the {which} damaged: the others, and the LoRA, are not touched by that"


def sentence(message: str, folder: RunFolder) -> str:
    """The first sentence of a message, without the place of the folder."""
    text = " ".join(message.replace(str(folder.path), folder.path.name).split())
    first = re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0]
    return first if len(first) <= _MOST_SENTENCE else first[: _MOST_SENTENCE - 1] + "…"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; links in it are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
            except OSError:  # removed meanwhile
                continue
    return total


def _end_of(diary: Path) -> tuple[RunHistory, float | None, float | None]:
    """What the end of a diary says; the newest held-out loss; seconds of a step."""
    history = RunHistory()
    if not is_file(diary):
        return history, None, None
    try:
        with diary.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_TAIL_BYTES))
            data = file.read(MOST_TAIL_BYTES)
    except OSError:
        return history, None, None
    seconds: list[float] = []
    for most in (TAIL_BYTES, MOST_TAIL_BYTES):
        history, seconds = RunHistory(), []
        for line in data[-most:].split(b"\n")[:-1]:
            event = parse_event(line)
            if event is None:
                continue
            history.add(event)
            if event["event"] == "step" and "seconds" in event:
                seconds.append(float(event["seconds"]))
        if history.last_step or len(data) <= most:
            break
    return history, _newest_validation(data), median(seconds) if seconds else None


def _newest_validation(data: bytes) -> float | None:
    place = data.rfind(_VALIDATION)
    while place >= 0:
        start, end = data.rfind(b"\n", 0, place) + 1, data.find(b"\n", place)
        event = parse_event(data[start:end]) if end > 0 else None
        if event is not None and event["event"] == "validation":
            return float(event["loss"])
        place = data.rfind(_VALIDATION, 0, place)
    return None


def _folders(runs: Path) -> list[Path]:
    try:
        return [path for path in runs.iterdir() if not path.name.startswith(".") and is_file(path / "job.json")]
    except OSError:
        return []


def _stamp(path: Path) -> _Stamp:
    """What is another as soon as something of the run has changed: times and sizes."""
    found: list[tuple[int, int]] = []
    for name in _WATCHED:
        try:
            stat = (path / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def _is_in_use(folder: RunFolder) -> bool:
    try:
        return is_in_use(folder)
    except RunError:  # its locks can't be opened: another user's, perhaps
        return True


def _changed(folder: RunFolder) -> float:
    for path in (folder.events_path, folder.job_path):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

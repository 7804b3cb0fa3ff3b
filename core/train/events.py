"""The run's diary: `events.jsonl`, one JSON object a line, only ever appended to.

Every line has `event` and `time` (seconds since the epoch). Kinds: origin (the run and the step whose checkpoint was
copied; the steps up to there follow, as that run's diary has them), start, status, plan (with `step` where it changed),
warning, step, validation, preview, checkpoint, stopped, finished, error. After a crash a line may be cut short; readers
skip it.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class EventWriter:
    """Appends events; each line reaches the file before `write` returns."""

    def __init__(self, path: Path):
        self.path = path
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())


class EventReader:
    """Follows an events file from a position, without ever holding it open."""

    def __init__(self, path: Path, *, at_end: bool = False):
        self.path = path
        self.position = path.stat().st_size if at_end and path.exists() else 0

    def read(self) -> list[Event]:
        """The complete lines written since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read()
        complete = data.rfind(b"\n") + 1
        self.position += complete
        events = []
        for line in data[:complete].splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # a line that a crash cut short
        return events


def needs_attention(event: Event) -> bool:
    """Whether the event tells of what is not as it should be: a warning, or a plan that memory did not suffice for."""
    return event.get("event") == "warning" or (event.get("event") == "plan" and "step" in event)


@dataclass
class RunHistory:
    """What the events of a run say, put together: where attempts overlap after a crash, the last one counts."""

    losses: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    last_step: Event = field(default_factory=dict)
    state: str = "new"  # new, waiting, training, stopped, finished, error
    message: str = ""

    def add(self, event: Event) -> None:
        """Take in one event."""
        kind = event.get("event")
        if kind == "start":
            self.state, self.message = "waiting", ""
            resumed = int(event.get("step", 0))
            self.losses = {k: v for k, v in self.losses.items() if k <= resumed}
            self.validation = {k: v for k, v in self.validation.items() if k <= resumed}
        elif kind == "step":
            self.state, self.message, self.last_step = "training", "", event
            self.losses[int(event["step"])] = float(event["loss"])
        elif kind == "validation":
            self.validation[int(event["step"])] = float(event["loss"])
        elif kind in ("status", "plan"):
            self.message = event["message"]
        elif kind in ("stopped", "finished", "error"):
            self.state, self.message = str(kind), event.get("message", "")
        if needs_attention(event) and event["message"] not in self.warnings:
            self.warnings.append(event["message"])


def read_history(path: Path) -> RunHistory:
    """The history of a run folder's `events.jsonl`."""
    history = RunHistory()
    for event in EventReader(path).read():
        history.add(event)
    return history

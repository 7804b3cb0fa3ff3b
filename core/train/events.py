"""The run's diary: `events.jsonl`, one JSON object a line, only ever appended to.

Every line has `event`, `time` (seconds since the epoch) and, last, `crc`: the checksum of the line without it. Kinds:
origin (the run and the step whose checkpoint was copied; the steps up to there follow, as that run's diary has them),
start, status, plan (with `step` where it changed), warning, step, validation, preview, shown (what a preview took until the
run could go on), checkpoint, turn (the device goes to the other expert's run, or is back), stopped, finished, error. A step's
`bins` are [bin of sigma (facts.SIGMA_BINS), mean loss, number of samples], of those that it has samples in. Lines that a crash
cut short, or that were damaged, are passed over and counted.
"""

import json
import math
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk import disk_error
from ..errors import START_AGAIN, RunError
from ..safe_json import parse_json

Event = dict[str, Any]

DIVERGES = "diverges"  # `about` of the warnings of core.train.divergence
MAX_LINE = 2**20  # bytes; what is longer is no line of ours
MAX_WAITING = 10_000  # lines that wait in memory for a disk that refuses
_RESERVE = 2**16  # bytes on the disk that are given up for a run's last words
_LAST_WORDS = ("stopped", "finished", "error")
_CHECKED = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"}', re.DOTALL)
_CHUNK = 2**20

_Fields = dict[str, type | tuple[type, ...]]
_NUMBER = (int, float)
# What each kind must have for those who show it; other kinds, of later versions, may have what they like.
_NEEDED: dict[str, _Fields] = {
    "start": {"step": int},
    "status": {"message": str},
    "plan": {"message": str},
    "warning": {"message": str},
    "step": {"step": int, "loss": _NUMBER},
    "validation": {"step": int, "loss": _NUMBER},
    "preview": {"step": int, "path": str, "seconds": _NUMBER},
    "shown": {"step": int, "seconds": _NUMBER},
    "checkpoint": {"step": int},
    "turn": {"step": int, "message": str},
    "error": {"message": str},
}
_IF_THERE: _Fields = {"step": int, "message": str, "about": str, "bins": list} | dict.fromkeys(
    (
        "lr",
        "grad_norm",
        "sigma",
        "seconds",
        "allocated_gib",
        "reserved_gib",
        "vram",
        "ram",
        "every",
        "away_s",
        "switch_s",
    ),
    _NUMBER,
)


class EventWriter:
    """Appends events; each line reaches the file before `write` returns.

    Where the disk refuses, the line waits in memory for the next try, and `trouble` says what the disk said: the run
    can go on, and may want to save a checkpoint first.
    """

    def __init__(self, path: Path):
        self.path = path
        self.trouble: OSError | None = None
        self._waiting: list[bytes] = []
        self._is_torn = _is_torn(path)
        self._reserve = path.with_name(f".{path.name}.reserve")
        self._keep_reserve()

    @property
    def is_overfull(self) -> bool:
        """Whether more lines wait than memory should hold."""
        return len(self._waiting) > MAX_WAITING

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. RunError if the run folder is gone."""
        line = format_event({"event": event, "time": round(time.time(), 3), **fields})
        self._waiting.append(line)
        self._flush()
        if event in _LAST_WORDS:
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            if self.trouble is not None:
                if sum(map(len, self._waiting)) > _RESERVE:
                    self._waiting = [line]
                self._flush()

    def sentence(self, kept: str) -> str:
        """What is wrong with the disk; `kept` says what is safe."""
        assert self.trouble is not None
        return str(disk_error(self.trouble, self.path, kept))

    def _flush(self) -> None:
        """Write what waits. After a failure whole lines are in the file, and the others wait."""
        data = (b"\n" if self._is_torn else b"") + b"".join(self._waiting)
        written = 0
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.seek(0, 2)
                try:
                    while written < len(data):
                        written += file.write(data[written:])
                    self._waiting, self._is_torn, self.trouble = [], False, None
                except OSError:
                    self._forget_written(data[:written])
                    if written and self._is_torn:  # what readers have not taken yet: half a line
                        file.truncate(start + data[:written].rfind(b"\n") + 1)
                        self._is_torn = False
                    raise
        except OSError as error:
            if not self.path.parent.is_dir():
                raise RunError(
                    f"The run folder {self.path.parent} is gone: it was deleted, or its disk was taken away, while the run "
                    "trained in it; bring it back, or start again to begin anew.",
                    about=START_AGAIN,
                ) from error
            self.trouble = error

    def _forget_written(self, written: bytes) -> None:
        if not written:
            return
        self._is_torn = not written.endswith(b"\n")
        whole = written[1:] if written.startswith(b"\n") else written
        del self._waiting[: whole.count(b"\n")]

    def _keep_reserve(self) -> None:
        with suppress(OSError):  # then there are no last words on a full disk
            if not self._reserve.is_file():
                self._reserve.write_bytes(bytes(_RESERVE))


def format_event(event: Event) -> bytes:
    """The line of an event, with its checksum. Numbers that are not finite, which JSON does not know, become null."""
    try:
        text = json.dumps(event, allow_nan=False).encode()
    except ValueError:
        text = json.dumps(_without_nan(event)).encode()
    return text[:-1] + f', "crc": "{zlib.crc32(text):08x}"}}\n'.encode()


def parse_event(line: bytes) -> Event | None:
    """The event of a line; None if the line is damaged or is no event."""
    match = _CHECKED.fullmatch(line)
    if match is not None:
        line = match[1] + b"}"
        if zlib.crc32(line) != int(match[2], 16):
            return None
    try:
        event = parse_json(line, finite=match is None)  # what has its checksum is as we wrote it
    except ValueError:
        return None
    return event if isinstance(event, dict) and _is_event(event) else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_event(event: Event) -> bool:
    kind = event.get("event")
    if not isinstance(kind, str) or not _is(event.get("time"), _NUMBER) or "crc" in event:
        return False
    needed = _NEEDED.get(kind, {})
    if not all(name in event and _is(event[name], wanted) for name, wanted in needed.items()):
        return False
    optional = _IF_THERE if kind in _NEEDED or kind in _LAST_WORDS else {}
    return all(_is(event[name], wanted) for name, wanted in optional.items() if event.get(name) is not None)


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_torn(path: Path) -> bool:
    """Whether the file ends within a line."""
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except OSError:
        return False


class EventReader:
    """Follows an events file from a position, without ever holding it open."""

    def __init__(self, path: Path, *, at_end: bool = False):
        self.path = path
        self.damaged = 0  # lines that were passed over
        self.position = path.stat().st_size if at_end and path.exists() else 0
        self._is_within_long = False

    def read(self) -> list[Event]:
        """The complete lines written since the last call."""
        return list(self.stream())

    def stream(self) -> Iterator[Event]:
        """As `read`, one by one, with no more than two lines' worth of the file in memory.

        A file that is missing or can't be read has no lines.
        """
        for line in self._lines():
            if not line:
                continue
            event = parse_event(line)
            if event is None:
                self.damaged += 1
            else:
                yield event

    def _lines(self) -> Iterator[bytes]:
        try:
            if not self.path.is_file():  # a pipe would be read for ever
                return
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.position:  # another file, or one that was cut
                    self.position = 0
                file.seek(self.position)
                rest = b""
                while chunk := file.read(_CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self.position += len(line) + 1
                        yield self._whole(line)
                    if len(rest) > MAX_LINE:
                        self.position += len(rest)
                        self._is_within_long, rest = True, b""
        except OSError:
            return

    def _whole(self, line: bytes) -> bytes:
        """The line, or what counts as a damaged one in the place of one that is too long."""
        if self._is_within_long or len(line) > MAX_LINE:
            self._is_within_long = False
            return b"?"
        return line


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
    about: str = ""  # of an error: as `WanTrainError.about`

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
        elif kind in ("status", "plan", "turn"):
            self.message = event["message"]
        elif kind in ("stopped", "finished", "error"):
            self.state, self.message, self.about = str(kind), event.get("message", ""), event.get("about", "")
        if needs_attention(event) and event["message"] not in self.warnings:
            self.warnings.append(event["message"])


def read_history(path: Path) -> RunHistory:
    """The history of a run folder's `events.jsonl`; lines that can't be read are told in its warnings."""
    history, reader = RunHistory(), EventReader(path)
    for event in reader.stream():
        history.add(event)
    if reader.damaged:
        lines = "1 line is" if reader.damaged == 1 else f"{reader.damaged} lines are"
        history.warnings.append(
            f"{lines} damaged in {path}, and passed over: what it told may miss in curves and notes."
        )
    return history

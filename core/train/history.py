"""The history of a run of any length, for those who look at it: read a piece at a time, and after that only what is new.

A diary of a million steps has 200 MB. Read whole, and each line kept as a dictionary, it takes more than a gigabyte; here
a step takes about 65 bytes, and a second look reads only the lines that were added. `Curve.thinned` gives what a chart of a
thousand columns can show: every peak, and not more than MAX_POINTS points.
"""

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .by_sigma import LossesBySigma
from .events import DIVERGES, Event, EventReader, RunHistory, needs_attention
from .thinning import MAX_POINTS, Drawn, Point, drawn

MAX_WARNINGS = 1000  # that a history keeps
MAX_ALARMS = 20  # that a chart shows
_FINGERPRINT = 256  # bytes at the start by which a diary is known again


class Curve(MutableMapping[int, float]):
    """Losses by step in ascending order, 16 bytes each; where a step comes again, the later loss counts.

    Steps that do not fit into 64 bits raise OverflowError.
    """

    def __init__(self) -> None:
        self._steps, self._losses = array("q"), array("d")

    def __setitem__(self, step: int, loss: float) -> None:
        steps, losses = self._steps, self._losses
        if not steps or step > steps[-1]:  # as a diary has it
            steps.append(step)
            losses.append(loss)
            return
        place = bisect_left(steps, step)
        if steps[place] == step:
            losses[place] = loss
        else:
            steps.insert(place, step)
            losses.insert(place, loss)

    def __getitem__(self, step: int) -> float:
        place = self._place(step)
        return self._losses[place]

    def __delitem__(self, step: int) -> None:
        place = self._place(step)
        del self._steps[place], self._losses[place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def _place(self, step: int) -> int:
        place = bisect_left(self._steps, step)
        if place == len(self._steps) or self._steps[place] != step:
            raise KeyError(step)
        return place

    @property
    def last_step(self) -> int:
        """The highest step; 0 if there is none."""
        return self._steps[-1] if self._steps else 0

    def cut(self, step: int) -> None:
        """Forget what comes after `step`: a run that was killed goes on from an earlier checkpoint."""
        end = bisect_right(self._steps, step)
        del self._steps[end:], self._losses[end:]

    def points(self) -> list[Point]:
        """All (step, loss)."""
        return list(zip(self._steps, self._losses, strict=True))

    def thinned(self, most: int = MAX_POINTS) -> list[Point]:
        """(step, loss), at most `most`, of finite losses: the ends, and the lowest and highest of equal pieces between."""
        return self.drawn(most=most).points

    def smoothed(self, run_steps: int, most: int = MAX_POINTS) -> list[Point]:
        """(step, average) at the steps of `thinned`: the chart's moving average, over all points and not the kept ones.

        As `smooth` and `windowFor` in web/curve.js have it. Empty where `thinned` keeps all, for then the chart can.
        """
        return [] if len(self) <= most else self.drawn(window_of(run_steps or len(self)), most=most).averages

    def drawn(
        self, window: float = 1, *, first: int | None = None, last: int | None = None, most: int = MAX_POINTS
    ) -> Drawn:
        """What a chart shows of the steps from `first` to `last`, at most `most` points; averages look back over `window`."""
        return drawn(self._steps, self._losses, window, first=first, last=last, most=most)


def window_of(run_steps: int) -> float:
    """The steps over which a chart averages where nobody has chosen: a 25th of the run, at least 8 and at most 100."""
    return min(100, max(8, run_steps / 25))


class LongHistory(RunHistory):
    """A RunHistory of any length: the same values, with curves in the place of dictionaries, and more of them."""

    losses: Curve  # type: ignore[assignment]
    validation: Curve  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.validation = Curve(), Curve()  # type: ignore[assignment]
        self.learning_rates, self.gradient_norms = Curve(), Curve()
        self.by_sigma = LossesBySigma()
        self.alarms: list[tuple[int, str]] = []  # (step, sentence) of what says that the training diverges

    def add(self, event: Event) -> None:
        """Take in one event, as `EventReader` gives them."""
        kind = event.get("event")
        if kind == "warning" and needs_attention(event) and len(self.warnings) >= MAX_WARNINGS:
            return
        if kind != "start":
            super().add(event)
            if kind == "step":
                self._measure(event)
            elif kind == "warning" and event.get("about") == DIVERGES:
                self.alarms.append((int(event.get("step") or self.losses.last_step), event["message"]))
            return
        losses, validation, resumed = self.losses, self.validation, int(event.get("step", 0))
        self.losses, self.validation = Curve(), Curve()  # type: ignore[assignment]
        try:
            super().add(event)
        finally:
            for curve in (losses, validation, self.learning_rates, self.gradient_norms, self.by_sigma):
                curve.cut(resumed)
            self.losses, self.validation = losses, validation  # type: ignore[assignment]
            self.alarms = [alarm for alarm in self.alarms if alarm[0] <= resumed]

    def _measure(self, event: Event) -> None:
        """What a step tells beside its loss; older diaries have less of it."""
        for name, curve in (("lr", self.learning_rates), ("grad_norm", self.gradient_norms)):
            if event.get(name) is not None:
                curve[int(event["step"])] = float(event[name])
        self.by_sigma.add(event)


class HistoryReader:
    """Keeps the history of one diary up to date: each `read` takes in the complete lines that have come since the last.

    A diary that was replaced or made shorter is read anew. Lines that are no events are passed over and counted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.history, self._events = LongHistory(), EventReader(self.path)
        self._start = b""

    @property
    def skipped(self) -> int:
        """Lines that were passed over."""
        return self._events.damaged

    def read(self) -> LongHistory:
        """The history as it is now, for the one thread that has this reader. OSError if the diary can't be read."""
        with self.reading() as history:
            return history

    @contextmanager
    def reading(self) -> Iterator[LongHistory]:
        """The history as it is now, and as it stays until the block ends; several threads take turns. OSError as `read`."""
        with self._lock:
            self._bring_up_to_date()
            yield self.history

    def _bring_up_to_date(self) -> None:
        if not self.path.is_file():  # absent, or a pipe that would never end
            self._forget()
            return
        with self.path.open("rb") as file:
            if not self._is_continued(file):
                self._forget()
                file.seek(0)
                self._start = file.read(_FINGERPRINT)
        for event in self._events.stream():
            self.history.add(event)

    def _is_continued(self, file: BinaryIO) -> bool:
        """Whether what was read before is still there, before what is new."""
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(_FINGERPRINT)
        grown = start[: len(self._start)] == self._start
        if grown and len(self._start) < _FINGERPRINT:
            self._start = start
        return grown and size >= self._events.position


class Histories:
    """The histories of the runs that were looked at last, each read once. For several threads."""

    def __init__(self, most: int = 8) -> None:
        self._most, self._lock = most, threading.Lock()
        self._readers: OrderedDict[Path, HistoryReader] = OrderedDict()

    def reader(self, path: Path) -> HistoryReader:
        """The reader of this diary; the one that was not asked for the longest is dropped for a new one."""
        with self._lock:
            reader = self._readers.pop(path, None) or HistoryReader(path)
            self._readers[path] = reader
            while len(self._readers) > self._most:
                self._readers.popitem(last=False)
        return reader


def read_long_history(path: Path) -> LongHistory:
    """As `events.read_history`, in a few tens of megabytes however long the diary is."""
    return HistoryReader(path).read()

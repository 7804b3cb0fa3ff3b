"""The first steps of a run against what was predicted of them: kept for the next run's plan."""

import logging
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

from ..errors import RunError
from ..settings.memory import BlockMode
from .card import corrected, write_correction
from .choice import Choice
from .planner import Planner

log = logging.getLogger(__name__)

WARM_UP = 3  # steps that compile, and make the optimizer's state
NUM_MEASURED = 8
Peak = Callable[[], int | None]  # of steps, see `StepMemory.allocated`


def correction_kind(planner: Planner, mode: BlockMode | None = None) -> str:
    """What predictions may be off alike for: the key of a correction; by default with blocks as in `planner.plan`."""
    order = " deterministic" if planner.options.deterministic else ""
    return f"{planner.plan.precision} {mode or planner.plan.compile}{order}"


class MeasuredStep(Protocol):
    """What is asked of a step that was done: `core.train.loop.StepReport` is one."""

    @property
    def step(self) -> int:
        """Number of updates made, this one included."""
        ...

    @property
    def seconds(self) -> float:
        """From its start to its end, on the device's clock."""
        ...

    @property
    def tokens(self) -> int:
        """Of the video, in all its batches."""
        ...


class AtTheEnd:
    """A callback: does something once, when the last step is done."""

    def __init__(self, steps: int, act: Callable[[], None]) -> None:
        self._steps, self._act = steps, act

    def needs_weights(self, _trainer: object) -> bool:
        return False

    def __call__(self, _trainer: object, report: MeasuredStep) -> None:
        if report.step == self._steps:
            self._act()


class Measure:
    """A callback: after `num_steps` steps under one plan, the ratio of measured to predicted goes into `folder`.

    Only where all clips have one size: else the peak, and the mean of few steps, belong to whatever came by.
    """

    def __init__(
        self, planner: Planner, choice: Callable[[], Choice], *, folder: Path, peak: Peak, num_steps: int = NUM_MEASURED
    ) -> None:
        """`choice`: the one in force; after a change the measurement ends."""
        self._planner, self._choice, self._folder, self._peak = planner, choice, folder, peak
        self._started = choice()
        self._times: list[float] = []
        self._num_steps = num_steps
        self._done = len(planner.buckets) > 1

    def needs_weights(self, _trainer: object) -> bool:
        return False

    def __call__(self, _trainer: object, _report: MeasuredStep) -> None:
        if self._done:
            return
        if self._choice() is not self._started:
            self._done = True
            return
        self._times.append(time.perf_counter())
        if len(self._times) == WARM_UP + self._num_steps:
            self._done = True
            self._write()

    def _write(self) -> None:
        times = self._times[WARM_UP - 1 :]
        seconds = median(b - a for a, b in pairwise(times))
        (found,) = self._started.estimates.values()
        peak, memory = self._peak(), None
        if peak is not None:
            memory = max(peak - found.exact_vram, 1) / (found.vram - found.exact_vram)
        plan = self._started.plan
        correction = corrected(self._planner.correction_of(plan), memory=memory, seconds=seconds / found.seconds)
        try:
            kind = correction_kind(self._planner, plan.compile)
            write_correction(self._folder, self._planner.card, kind, self._planner.version, correction)
        except RunError as error:
            log.warning("What this run took is not kept for the next plan: %s", error)

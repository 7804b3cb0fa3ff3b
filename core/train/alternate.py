"""Two experts in turns on one device: each is a run of its own, in a process of its own, that hands the device over on its way.

So every run is what it would be alone, to the bit: its folder, its checkpoints, its curve; and it can go on alone, or with
the other, whatever it began as.
"""

import time
from collections.abc import Callable
from typing import Protocol

from .events import EventWriter
from .loop import StepReport, Trainer
from .requests import Requests
from .resume import SaveCheckpoint
from .run_plan import RunPlan

AWAY = "the other expert is being trained"


class Turns(Protocol):
    """The run's turn on its device; see `core.launch.alternating`."""

    @property
    def has_waited(self) -> bool:
        """Whether another run has had the device before this one."""
        ...

    def is_wanted(self) -> bool:
        """Whether the other run waits for it."""
        ...

    def hand_over(self, ask: Callable[[], bool], /) -> bool:
        """Let the other run train, until it is this one's turn; False, without it, if `ask` says meanwhile to stop."""
        ...


class RunStoppedError(Exception):
    """Raised between two steps, after a checkpoint was written."""


class TakeTurns:
    """Hands the device over every `alternate_every` steps, if somebody waits for it. The last of the callbacks."""

    def __init__(
        self,
        turns: Turns,
        plan: RunPlan,
        events: EventWriter,
        checkpoint: SaveCheckpoint,
        *,
        should_stop: Callable[[], bool],
        saves: Requests,
    ) -> None:
        """`saves`: ask for a checkpoint, which is written at once, whoever's turn it is."""
        self._turns, self._plan, self._events, self._checkpoint = turns, plan, events, checkpoint
        self._should_stop, self._saves = should_stop, saves

    def needs_weights(self, trainer: Trainer) -> bool:
        every, is_over = trainer.job.alternate_every, trainer.step >= trainer.job.loop.steps
        return trainer.step % every == 0 and not is_over and self._turns.is_wanted()

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step != trainer.step or not self.needs_weights(trainer) or not self._plan.leave():
            return
        start = time.perf_counter()
        self._events.write("turn", step=trainer.step, message=AWAY)
        if not self._turns.hand_over(lambda: self._is_stopped(trainer)):
            self._checkpoint.save(trainer)
            raise RunStoppedError
        back = time.perf_counter()
        self._plan.come_back(trainer.step)
        away_s, switch_s = round(back - start, 3), round(time.perf_counter() - back, 3)
        every = trainer.job.alternate_every
        self._events.write("turn", step=trainer.step, message="", every=every, away_s=away_s, switch_s=switch_s)

    def _is_stopped(self, trainer: Trainer) -> bool:
        if self._saves.is_there():
            self._saves.answer()
            self._checkpoint.save(trainer, is_last=False)
        return self._should_stop()

"""What a run does beside its steps, by the clock: for what the next run's plan reckons with."""

import time

from .loop import StepReport, Trainer


class Clock:
    """A callback, the first of all: notes seconds of validations and previews, and how long ago the last step was."""

    def __init__(self) -> None:
        self.validations: list[float] = []
        self.previews: list[float] = []
        self._reported, self._since = time.perf_counter(), 0.0

    def validated(self, seconds: float) -> None:
        """A validation took so long."""
        self.validations.append(seconds)
        self._since += seconds

    def previewed(self, seconds: float) -> None:
        """A preview took so long, until the run could go on."""
        self.previews.append(seconds)
        self._since += seconds

    @property
    def since_last_step(self) -> float:
        """Seconds since the last step was reported, without what was noted meanwhile."""
        return time.perf_counter() - self._reported - self._since

    def needs_weights(self, _trainer: Trainer) -> bool:
        return False

    def __call__(self, _trainer: Trainer, _report: StepReport) -> None:
        self._reported, self._since = time.perf_counter(), 0.0

"""Tells when a training diverges: its loss stays far above its best, or its gradients have grown out of all proportion.

The rule, which ends no run: for PATIENCE steps on end the loss is above LOSS_FACTOR times its best, or the gradient norm
above GRADIENT_FACTOR times its lowest. Both are averages, over WINDOW and GRADIENT_WINDOW steps, for single steps jump with
their noise level; geometric ones, which a single step that is a thousand times too high hardly moves.
"""

import math
from collections.abc import Iterable

from .events import DIVERGES, EventWriter
from .loop import StepReport, Trainer

WINDOW, LOSS_FACTOR = 50, 3.0
GRADIENT_WINDOW, GRADIENT_FACTOR = 20, 50.0
PATIENCE = 50  # steps
_LEAST, _MOST = 1e-12, 300.0  # of a value, and of a logarithm that is told
_ADVICE = "lower learning_rate, or go back to an earlier checkpoint; the run goes on."


class AboveBest:
    """Whether the average of positive values has stayed above its lowest for long."""

    def __init__(self, window: int, factor: float) -> None:
        """`factor`: how many times the lowest average is too much. The first half of a `window` is not judged."""
        self._beta, self._window, self._factor = 1 - 1 / window, window, factor
        self._mean, self._count, self._above = 0.0, 0, 0  # of logarithms
        self._best = math.inf

    def add(self, value: float) -> float:
        """Take in the next value; 0, or once, when it has been too much for PATIENCE values, how many times the best it is."""
        self._count += 1
        self._mean = self._beta * self._mean + (1 - self._beta) * math.log(max(value, _LEAST))
        average = self._mean / (1 - self._beta**self._count)
        if 2 * self._count < self._window:
            return 0.0
        self._best = min(self._best, average)
        times = math.exp(min(average - self._best, _MOST))
        self._above = self._above + 1 if times > self._factor else 0
        return times if self._above == PATIENCE else 0.0


class Divergence:
    """The rule over the steps of a run, in their order."""

    def __init__(self) -> None:
        self._loss = AboveBest(WINDOW, LOSS_FACTOR)
        self._gradient = AboveBest(GRADIENT_WINDOW, GRADIENT_FACTOR)

    def add(self, step: int, loss: float, gradient_norm: float | None) -> str:
        """A sentence when the rule begins to hold; else "". What is not finite is passed over."""
        said: list[str] = []
        if math.isfinite(loss) and (times := self._loss.add(loss)):
            said.append(f"the loss is {times:.1f} times its best")
        if gradient_norm is not None and math.isfinite(gradient_norm) and (times := self._gradient.add(gradient_norm)):
            said.append(f"the gradient norm is {times:.0f} times its lowest")
        if not said:
            return ""
        return (
            f"the training seems to diverge: at step {step} {' and '.join(said)}, and has been so for long: {_ADVICE}"
        )


class WatchDivergence:
    """Writes a warning into the diary when the training diverges."""

    def __init__(self, events: EventWriter, before: Iterable[tuple[int, float, float | None]] = ()) -> None:
        """`before`: step, loss and gradient norm of the steps made before, where the run goes on."""
        self._events, self._rule = events, Divergence()
        for step, loss, gradient_norm in before:
            self._rule.add(step, loss, gradient_norm)

    def needs_weights(self, _trainer: Trainer) -> bool:
        return False

    def __call__(self, _trainer: Trainer, report: StepReport) -> None:
        if sentence := self._rule.add(report.step, report.loss, report.grad_norm):
            self._events.write("warning", message=sentence, about=DIVERGES, step=report.step)

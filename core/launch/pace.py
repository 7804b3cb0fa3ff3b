"""How fast a run goes, by its diary: what is left of it, and how long a stop may take."""

from collections import deque

from ..train.events import Event

KEPT = 20  # steps, and as many validations


class Pace:
    """Of the events of one training process."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._validations: deque[float] = deque(maxlen=KEPT)

    def add(self, event: Event) -> None:
        """Take note of an event, of whatever kind."""
        if "seconds" not in event:
            return
        if event["event"] == "step":
            self._steps.append(event["seconds"])
        elif event["event"] == "validation":
            self._validations.append(event["seconds"])

    @property
    def num_steps(self) -> int:
        """Of those that are remembered."""
        return len(self._steps)

    @property
    def seconds(self) -> float:
        """The mean of a step; 0 before the first."""
        return sum(self._steps) / len(self._steps) if self._steps else 0.0

    @property
    def patience(self) -> float:
        """Seconds in which the process should have stopped by itself, a step and a validation done to their end.

        Before its first step there is nothing that it has to keep.
        """
        longest = max(self._steps, default=0.0) + max(self._validations, default=0.0)
        return 60 + 3 * longest if self._steps else 1.0

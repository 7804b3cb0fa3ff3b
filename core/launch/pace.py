"""How fast a run goes, by its diary: what is left of it, and how long a stop may take.

A step's time depends on the size of its clips, and the first step of a size takes longer than the later ones: what is left
is counted from the steady steps of each size, and the first steps of those that are still to come; and from the validations,
previews and checkpoints to come.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from ..plan.rhythm import Rhythms
from ..train.events import Event
from .interludes import Interludes

KEPT = 20  # steps, and as many validations; of each size, too


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Pace:
    """Of the events of one training process."""

    def __init__(self, rhythms: Rhythms | None = None) -> None:
        """`rhythms`: of the run's job; without them nothing is known of what comes beside the steps."""
        self._interludes = Interludes(rhythms)
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._validations: deque[float] = deque(maxlen=KEPT)
        self._firsts: dict[int, float] = {}  # seconds of the first step of each size, by its tokens
        self._later: dict[int, deque[float]] = {}  # of later ones
        self._counts: dict[int, int] = {}
        self._promised: dict[int, Mapping[str, float]] = {}  # by the plan: share, seconds, first_seconds
        self._turns: deque[float] = deque(maxlen=KEPT)  # seconds of each turn of another run on the device
        self._steps_between = 0  # two of them

    def add(self, event: Event) -> None:
        """Take note of an event, of whatever kind."""
        self._interludes.add(event)
        if event["event"] in ("step", "validation") and "seconds" not in event:
            return  # of a diary that others wrote
        if event["event"] == "step":
            self._steps.append(event["seconds"])
            self._add_step(int(event.get("tokens", 0)), float(event["seconds"]))
        elif event["event"] == "validation":
            self._validations.append(event["seconds"])
        elif event["event"] == "turn" and event.get("every", 0) > 0:
            self._turns.append(float(event.get("away_s", 0.0)) + float(event.get("switch_s", 0.0)))
            self._steps_between = int(event["every"])
        elif event["event"] == "plan":
            self._promised = _sizes_of(event)
            if "step" in event:  # what was known is of another plan, by which every size has a first step again
                self._firsts, self._later = {}, {}

    @property
    def num_steps(self) -> int:
        """Of those that are remembered."""
        return len(self._steps)

    @property
    def seconds(self) -> float:
        """The middle one of the last steps, which a single long one does not change; 0 before the first."""
        return median(self._steps) if self._steps else 0.0

    def left(self, steps: int) -> float | None:
        """Seconds until the run is over, which has `steps` more steps; None before there is anything to tell it from.

        With what is done beside the steps; that after the last one counts until it is done. With the turns of another run on
        the device, as long as those that were; that one may be over sooner.
        """
        found = self._left_alone(steps)
        if found is None:
            return None
        found += self._interludes.left(steps)
        if not self._turns:
            return found
        return found + median(self._turns) * (max(steps - 1, 0) // self._steps_between)

    def _left_alone(self, steps: int) -> float | None:
        shares = self._shares()
        known = {tokens: seconds for tokens in shares if (seconds := self._steady(tokens)) is not None}
        weight = sum(shares[tokens] for tokens in known)
        if not weight:
            return self._steps[-1] * steps if self._steps else None
        mean = sum(shares[tokens] * seconds for tokens, seconds in known.items()) / weight
        return steps * mean + self._firsts_to_come(steps, shares)

    @property
    def patience(self) -> float:
        """Seconds in which the process should have stopped by itself, a step and a validation done to their end.

        Before its first step there is nothing that it has to keep.
        """
        longest = max(self._steps, default=0.0) + max(self._validations, default=0.0)
        return 60 + 3 * longest if self._steps else 1.0

    def _add_step(self, tokens: int, seconds: float) -> None:
        self._counts[tokens] = self._counts.get(tokens, 0) + 1
        if tokens not in self._firsts:
            self._firsts[tokens] = seconds
        else:
            self._later.setdefault(tokens, deque(maxlen=KEPT)).append(seconds)

    def _shares(self) -> dict[int, float]:
        """Of each size in the steps to come: as the plan knows them, else as they came."""
        if self._promised and self._counts.keys() <= self._promised.keys():
            return {tokens: size["share"] for tokens, size in self._promised.items()}
        return {tokens: float(count) for tokens, count in self._counts.items()}

    def _steady(self, tokens: int) -> float | None:
        """Seconds of a later step of a size: as they were, else as the plan says, corrected by how it was off elsewhere."""
        if tokens in self._later:
            return median(self._later[tokens])
        if tokens not in self._promised:
            return None
        pairs = [
            (median(found), self._promised[size]["seconds"])
            for size, found in self._later.items()
            if size in self._promised
        ]
        expected = sum(promised for _, promised in pairs)
        off = sum(found for found, _ in pairs) / expected if expected else 1.0
        return off * self._promised[tokens]["seconds"]

    def _firsts_to_come(self, steps: int, shares: Mapping[int, float]) -> float:
        """Beyond steady steps, of the sizes that have not come: as long as those that have, else as the plan says."""
        extras = [
            max(first - steady, 0.0)
            for tokens, first in list(self._firsts.items())[1:]  # the run's very first step has more to do
            if (steady := self._steady(tokens)) is not None and tokens in self._later
        ]
        found = 0.0
        total = sum(shares.values())
        for tokens in shares.keys() - self._firsts.keys():
            chance = 1 - (1 - shares[tokens] / total) ** steps
            promised = self._promised.get(tokens, {}).get("first_seconds", 0.0)
            found += chance * (sum(extras) / len(extras) if extras else promised)
        return found


def _sizes_of(event: Event) -> dict[int, Mapping[str, float]]:
    sizes: Mapping[str, Mapping[str, Any]] = event.get("sizes", {})
    return {int(tokens): size for tokens, size in sizes.items()}

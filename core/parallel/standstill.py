"""Whether a run hangs, and which rank it is: found from where all ranks are (`progress.py`), once a second.

A run hangs where nothing changes on any rank for longer than it may. How long that is depends on who is waited for:

- A GPU, or the link between GPUs, has all that it needs. It gets on every few blocks, many times a step. It may take `still_s`,
  so that a run ends within a minute; or `times` the longest that the GPUs of this run have stood still so far, where cards are
  that slow. That is far beyond a GPU that is hot, or that another program uses meanwhile.
- A step that is larger than all before has no such measure, nor has what is before the end of the first, as the links are
  opened then: `first_s`.
- A host within its own part of a step may compile, read a slow disk whose server is started again, swap, or be looked at with a
  debugger. None of that can be told from one that hangs: `host_s`.
- Outside of its steps a rank may do what it likes, and the others wait: a preview, a checkpoint, a plan that takes less.

A run that is ended for nothing is far worse than one that is ended late.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .progress import RankPlace

Why = Literal["gpu", "host", "behind", "link"]
MOST_BETWEEN_S = 5.0  # of time that counts between two looks: more is a machine that was asleep


_OF_ONE: dict[Why, str] = {
    "gpu": "its GPU has not got on for {}, and the others wait for it",
    "host": "its process has not got on within a step for {}, and the others wait for it",
    "behind": "for {} the others have waited for it in an exchange",
    "link": "for {} it has waited for the others, with all its own work done",
}
_OF_SEVERAL: dict[Why, str] = {
    "gpu": "their GPUs have not got on for {}",
    "host": "their processes have not got on within a step for {}",
    "behind": "for {} the others have waited for them in an exchange",
    "link": "for {} they have waited for each other, with all their own work done: the link between them hangs",
}


@dataclass(frozen=True)
class StandstillLimits:
    """How long a run may stand still, in seconds.

    The long ones lie just below `world.PATIENCE`, after which torch.distributed would end the run without naming anybody.
    """

    still_s: float = 45.0
    times: float = 10.0  # of the longest so far
    first_s: float = 25 * 60.0
    host_s: float = 25 * 60.0


@dataclass(frozen=True)
class Hang:
    """Who hangs."""

    ranks: tuple[int, ...]
    why: Why
    seconds: float = 0.0

    def sentence(self, called: Callable[[int], str]) -> str:
        """For people; `called`: a rank."""
        *most, last = map(called, self.ranks)
        who = f"{', '.join(most)} and {last} hang" if most else f"{last} hangs"
        what = (_OF_SEVERAL if most else _OF_ONE)[self.why].format(f"{self.seconds:.0f} s")
        return f"{who}: {what}; the last checkpoint is kept. Start the run again to go on."


class Standstill:
    """Looks at the places of all ranks, again and again."""

    def __init__(self, limits: StandstillLimits) -> None:
        self._limits = limits
        self._places: dict[int, RankPlace] = {}
        self._seen: float | None = None
        self._still = self._longest = 0.0
        self._is_measure = False  # this standstill says how slow the GPUs are, if it ends

    def look(self, places: Mapping[int, RankPlace], now: float) -> Hang | None:
        """Who hangs, if anybody does. `places`: of all ranks; `now`: in seconds."""
        passed = 0.0 if self._seen is None else min(now - self._seen, MOST_BETWEEN_S)
        self._seen = now
        if places != self._places:
            if self._is_measure:
                self._longest = max(self._longest, self._still)
            self._places, self._still = dict(places), 0.0
        else:
            self._still += passed
        found = _awaited(places)
        self._is_measure = found is not None and found.why != "host"
        if found is None or self._still <= self._limit(found, places):
            return None
        return Hang(found.ranks, found.why, self._still)

    def _limit(self, found: Hang, places: Mapping[int, RankPlace]) -> float:
        limits = self._limits
        if any(place.is_first for place in places.values()):
            return max(limits.first_s, limits.host_s) if found.why == "host" else limits.first_s
        return limits.host_s if found.why == "host" else max(limits.still_s, limits.times * self._longest)


def _awaited(places: Mapping[int, RankPlace]) -> Hang | None:
    """Who is waited for; None if a rank is outside of its steps."""
    doing = {rank: place.doing for rank, place in places.items()}
    if "elsewhere" in doing.values():
        return None
    for why in ("gpu", "host"):
        ranks = tuple(rank for rank, what in doing.items() if what == why)
        if ranks:
            return Hang(ranks, why)
    exchanging = [rank for rank, place in places.items() if place.mark == "exchange"] or list(places)
    behind = _behind({rank: places[rank] for rank in exchanging})
    return Hang(behind, "behind") if behind else Hang(tuple(exchanging), "link")


def _behind(places: Mapping[int, RankPlace]) -> tuple[int, ...]:
    """Those that others of their group have passed."""
    return tuple(
        rank
        for rank, place in places.items()
        if any(other.group == place.group and other.reached > place.reached for other in places.values())
    )

"""What the ranks of a run must agree on, so that all of them take the same way at each fork. With one rank each is its own.

The forks, and who decides:
- Memory has run out, of a GPU or of the machine: whoever notices. All step down to one plan, and do the same again (`Votes`).
- The dtype of the arithmetic and how blocks run: what all of them have (`core.plan.alike`).
- How the base is held, at the start and when stepping down: the first rank, by what all cards have (`core.train.run_plan`).
- A stop, a checkpoint now, a preview now, and whether the host waits for the device after a step: anyone (`Agreement`).
- A loss that is not finite: the step's numbers are the same on all ranks, to the bit, and so is what is made of them.
- Which checkpoint the run goes on from: the first rank (`core.train.resume`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from ..errors import RunError
from ..shortage import Shortage
from .world import World

T = TypeVar("T")
_NUMBERS: dict[Shortage | None, int] = {None: 0, "ram": 1, "vram": 2}


class ElsewhereError(Exception):
    """An act can't be finished, because memory ran out on another rank."""


class StartAgainError(RunError):
    """Memory ran out within talk of the ranks, which then can't be repeated: they shall start again, with a leaner plan."""


class Verdict(NamedTuple):
    """Of all ranks: memory was short on one of them."""

    shortage: Shortage
    reason: str  # that rank's
    is_changed: bool  # whether the act had changed anything on any rank


class Votes:
    """Whether an act succeeded on all ranks. All of them ask, each time."""

    def __init__(self, world: World, *, talks_within: bool = False) -> None:
        """`talks_within`: the ranks talk within a forward, so that none of them can go on without the others."""
        self._world = world
        self.talks_within = talks_within

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to ask."""
        return self._world.size == 1

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return bool(self._world.most(int(flag))[0])

    def settle(
        self, shortage: Shortage | None, reason: str = "", *, is_changed: Callable[[], bool] = lambda: False
    ) -> Verdict | None:
        """None if nobody was short of memory. `is_changed`: asked of each rank if somebody was."""
        if self.is_alone:
            return None if shortage is None else Verdict(shortage, reason, is_changed())
        (worst,) = self._world.most(_NUMBERS[shortage])
        if not worst:
            return None
        told = self._world.tell((_NUMBERS[shortage], reason, is_changed()))
        first = next(one for one in told if one[0] == worst)
        found: Shortage = "vram" if worst == _NUMBERS["vram"] else "ram"
        return Verdict(found, first[1], any(one[2] for one in told))


class Agreement:
    """What a person asks of a run while it trains, looked at once a step: every rank then does the same about it."""

    def __init__(self, world: World, questions: Mapping[str, Callable[[], bool]]) -> None:
        """`questions`, the same on all ranks; a rank that can't know says no."""
        self._world, self._questions = world, dict(questions)
        self._answers: dict[str, bool] = {}

    def look(self, flag: bool = False) -> bool:
        """Ask everybody. Whether any rank says yes to `flag`, or to any question."""
        if self._world.size == 1:
            return flag
        found = {name: bool(ask()) for name, ask in self._questions.items()}
        is_any = flag or any(found.values())
        number, *answers = self._world.most(int(is_any), *map(int, found.values()))
        self._answers = {name: bool(answer) for name, answer in zip(found, answers, strict=True)}
        return bool(number)

    def answer(self, name: str) -> bool:
        """What was found last; with one rank, what is so now."""
        return self._questions[name]() if self._world.size == 1 else self._answers.get(name, False)

    def asker(self, name: str) -> Callable[[], bool]:
        """`answer` for one question."""
        return lambda: self.answer(name)


def in_turn(world: World, act: Callable[[], T]) -> T:
    """What `act` gives, which the first rank does before the others: what it leaves on the disk is then there for them."""
    if world.is_first:
        found = act()
        world.wait_for_all()
        return found
    world.wait_for_all()
    return act()

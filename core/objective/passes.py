"""Which forwards and backwards a batch takes, in order: what the planner and CUDA graphs have to know of an objective."""

from dataclasses import dataclass
from typing import Literal

Pass = Literal["forward", "forward without gradient", "backward"]


@dataclass(frozen=True)
class Passes:
    """The passes of one batch. A backward is that of all forwards with a gradient since the backward before."""

    order: tuple[Pass, ...] = ("forward", "backward")
    copies: int = 1  # of the batch, that go through the forward with a gradient together; through the others goes one

    def __post_init__(self) -> None:
        assert self.order[-1:] == ("backward",), "what no backward follows is not trained on"

    def __add__(self, other: "Passes") -> "Passes":
        """First these, then those; both of one copy."""
        assert self.copies == other.copies == 1, "what goes through together is one objective"
        return Passes(self.order + other.order)

    @property
    def num_forwards(self) -> int:
        """With a gradient."""
        return self.order.count("forward")

    @property
    def num_without(self) -> int:
        """Forwards without a gradient."""
        return self.order.count("forward without gradient")

    @property
    def most_waiting(self) -> int:
        """The most forwards at once that wait for their backward, and hold what it needs."""
        most = waiting = 0
        for each in self.order:
            waiting = 0 if each == "backward" else waiting + (each == "forward")
            most = max(most, waiting)
        return most


ONE_FORWARD = Passes()

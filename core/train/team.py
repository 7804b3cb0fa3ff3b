"""What the ranks of a run do together in a step: deal its batches, add up its gradients, tell its numbers.

`Alone` does the same for one rank, which has nothing to do there. See `core.parallel`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ..parallel.agree import ElsewhereError
from ..parallel.reduce import GradientSum
from ..parallel.world import ALONE, World
from ..shortage import shortage_of
from .dealing import Dealing, Dealt
from .numbers import StepNumbers

Agree = Callable[[bool], bool]
T = TypeVar("T")


class Alone:
    """One rank, which trains all batches of a step."""

    world: World = ALONE

    def __init__(self, num_batches: int) -> None:
        """`num_batches` of a step."""
        self._num_batches = num_batches

    def watched(self, act: Callable[[], T]) -> Callable[[], T]:
        """`act`, a step, which nobody watches."""
        return act

    def deal(self, step: int) -> Dealt:
        """The batches of the update that follows `step` updates."""
        first = step * self._num_batches
        return Dealt(tuple(range(first, first + self._num_batches)), first)

    @contextmanager
    def adding_up(self, dealt: Dealt) -> Iterator[None]:  # noqa: ARG002
        """Around the backwards of a step; after it, gradients are those of the whole step."""
        yield

    def whole(self, numbers: StepNumbers, dealt: Dealt) -> StepNumbers:  # noqa: ARG002
        """The numbers of the whole step."""
        return numbers

    def agree(self, is_ready: bool) -> bool:
        """Whether the host now waits for the device, and does what follows a step."""
        return is_ready


class Team:
    """Several ranks. Every method must be called on all of them."""

    def __init__(
        self,
        world: World,
        dealing: Dealing,
        gradients: GradientSum,
        *,
        names: Sequence[str],
        backwards: int,
        agree: Agree,
        most_samples: int,
        talks_within: bool = False,
    ) -> None:
        """`names`: of all terms of the loss. `backwards`: of a batch, at most. `most_samples`: of a step.

        `talks_within`: the ranks talk within a forward: one that is short of memory can't take part in the rest of the step.
        """
        self.world, self.agree = world, agree
        self._dealing, self._names, self._backwards = dealing, tuple(names), backwards
        self._talks_within = talks_within
        self._sum = gradients
        # Made now, so that nothing of it can fail when the others wait for it.
        self._table = torch.zeros(2 + 2 * len(self._names), most_samples, device=gradients.device)
        self._there = torch.ones(1, device=gradients.device)

    def watched(self, act: Callable[[], T]) -> Callable[[], T]:
        """`act`, a step, of which the others see how far it has come."""

        def watched_act() -> T:
            with self.world.progress.step():
                return act()

        return watched_act

    def deal(self, step: int) -> Dealt:
        """This rank's batches of the update that follows `step` updates."""
        return self._dealing.of(step)

    def following(self, index: int) -> Iterator[int]:
        """This rank's batches from number `index` on, without an end."""
        return self._dealing.following(index)

    @contextmanager
    def adding_up(self, dealt: Dealt) -> Iterator[None]:
        """Around the backwards of a step; after it, gradients are those of the whole step, summed over all ranks.

        If memory runs out within it on this rank, it still gives the others what they wait for, and raises the same. On
        another: ElsewhereError. Then no rank has made the update. With several backwards a batch, a batch may have fewer, and
        which is the last is known when all are over.
        """
        progress = self.world.progress
        progress.begun(dealt.tokens)
        self._sum.begin(len(dealt.indices) if self._backwards == 1 else 0)
        try:
            yield
        except Exception as error:
            if not self._talks_within and shortage_of(error) is not None:
                self._sum.finish_without()
                self.world.most(1)
            raise
        progress.mark("sum")
        self._sum.finish()
        if self.world.most(0)[0]:
            raise ElsewhereError

    @torch.no_grad()
    def whole(self, numbers: StepNumbers, dealt: Dealt) -> StepNumbers:
        """The numbers of the whole step, in the order of its batches: with the same losses, the same as on one rank."""
        starts = [sum(dealt.sizes[:place]) for place in range(len(dealt.sizes))]
        self._table.zero_()
        if self.world.context_rank == 0:  # its neighbours have the same samples
            for place, index in enumerate(dealt.indices):
                start = starts[index - dealt.first]
                for row, values in self._rows(numbers, place):
                    self._table[row, start : start + len(values)] = values
        self.world.add_(self._table)
        self.world.progress.mark("work")
        return self._read(self._table[:, : sum(dealt.sizes)].clone(), dealt)

    def _rows(self, numbers: StepNumbers, place: int) -> Iterator[tuple[int, Tensor]]:
        """Of this rank's batch at `place`: losses, sigmas, and of each term its values and that they are there."""
        loss, sigmas, terms = numbers.of_batch(place)
        yield 0, loss
        yield 1, sigmas
        for number, name in enumerate(self._names):
            if name in terms:
                values, there = terms[name]
                yield 2 + 2 * number, values
                yield 3 + 2 * number, self._there.expand(len(loss)) if there is None else there

    def _read(self, table: Tensor, dealt: Dealt) -> StepNumbers:
        losses, sigmas, *rest = table
        terms: dict[str, list[Tensor]] = {}
        if len(self._names) > 1:
            pairs = zip(self._names, rest[::2], rest[1::2], strict=True)
            terms = {name: [(values.sum() / there.sum()).view(1)] for name, values, there in pairs}
        sizes = list(dealt.sizes)
        return StepNumbers.known(losses.split(sizes), sigmas.split(sizes), terms, tokens=dealt.tokens)

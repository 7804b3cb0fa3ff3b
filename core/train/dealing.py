"""Which batches of a step this rank trains. A step has the same batches whatever the number of ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from ..facts import num_tokens
from ..parallel.deal import deal
from .batches import BatchSchedule

Cost = Callable[[int, int], float]  # tokens of a clip, number of clips -> how long they take
_KNOWN = 8


@dataclass(frozen=True)
class Dealt:
    """The batches of one step, and those of them that this rank trains."""

    indices: tuple[int, ...]  # this rank's, in the order in which it trains them
    first: int  # index of the step's first batch
    sizes: tuple[int, ...] = ()  # samples of each batch of the step, of all ranks; (): not known ahead
    tokens: int = 0  # of the video, in all of them


class Dealing:
    """Deals `num_batches` batches a step, by number, to `ranks` ranks; of these this is number `rank`.

    All of it is a function of the schedule and the step, which every rank computes by itself. `cost`: of a batch.
    `equal_counts`: see `core.parallel.deal`. `schedule` is for this object alone: others read theirs in threads.
    """

    def __init__(
        self,
        schedule: BatchSchedule,
        num_batches: int,
        *,
        rank: int,
        ranks: int,
        cost: Cost,
        equal_counts: bool = False,
    ) -> None:
        self._schedule, self._num_batches = schedule, num_batches
        self._rank, self._ranks = rank, ranks
        self._cost, self._equal_counts = cost, equal_counts
        self._known: dict[int, Dealt] = {}  # of the steps that are being read ahead

    def of(self, step: int) -> Dealt:
        """The batches of the update that follows `step` updates."""
        if step not in self._known:
            while len(self._known) >= _KNOWN:
                del self._known[next(iter(self._known))]
            self._known[step] = self._deal(step)
        return self._known[step]

    def following(self, index: int) -> Iterator[int]:
        """This rank's batches from number `index` on, without an end."""
        step = index // self._num_batches
        own = self.of(step).indices
        yield from own[own.index(index) :] if index in own else own
        for later in count(step + 1):
            yield from self.of(later).indices

    def _deal(self, step: int) -> Dealt:
        first = step * self._num_batches
        batches = [self._schedule.samples_at(index) for index in range(first, first + self._num_batches)]
        lengths = [num_tokens(samples[0].shape) for samples in batches]
        sizes = tuple(len(samples) for samples in batches)
        costs = [self._cost(length, size) for length, size in zip(lengths, sizes, strict=True)]
        places = deal(costs, self._ranks, equal_counts=self._equal_counts)[self._rank]
        tokens = sum(length * size for length, size in zip(lengths, sizes, strict=True))
        return Dealt(tuple(first + place for place in places), first, sizes, tokens)

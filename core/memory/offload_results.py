"""Activation offload of what blocks keep: the results of linear layers and attention wait for the backward in main memory.

A block that keeps these computes nothing again (see `rerun`), but takes about eleven times its input for them: 1.5 GB for 33
frames of 832 x 480 in the 14B model. Here each tensor leaves as soon as the block keeps it, while the block goes on, and comes
back while the blocks after it are in their backward. Pool, stream and copies are those of `offload`.

On the device are at most those of one block that leave, and in the backward those of one block that arrive. Where copies take
longer than the computation, it waits for them.
"""

import weakref
from collections.abc import Callable, Iterable
from itertools import chain

from torch import Tensor, nn

from .offload import ActivationOffload, Parked
from .remaker import Away, Own

LEAST = 2**20  # bytes: smaller ones stay, since a copy takes the host as long as some kernels


class ResultOffload:
    """Of a model: which runs of its blocks have something in main memory, in the order in which they began."""

    def __init__(self, offload: ActivationOffload, own: Own) -> None:
        """`own`: what is kept in the place of a tensor that stays."""
        self._offload, self._own = offload, own
        self._newest: Callable[[], BlockResults | None] = lambda: None

    def start(self, block: nn.Module, others: Iterable[object]) -> "BlockResults":
        """A block begins, which is given `others` besides its input, and shall keep nothing on the device."""
        tensors = chain(block.parameters(), block.buffers(), (each for each in others if isinstance(each, Tensor)))
        there_anyway = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        results = BlockResults(self._offload, self._own, there_anyway, self._newest)
        self._newest = weakref.ref(results)
        return results

    def follow(self) -> None:
        """A block begins that has nothing in main memory."""
        newest = self._newest()
        if newest is not None:
            newest.distance += 1

    def return_to(self, results: "BlockResults | None") -> None:
        """The backward of a block begins, which has kept `results`. Some of what the next one needs is fetched, too."""
        if results is not None:
            results.fetch(steps=1)
            self._newest = results.before
        coming = self._newest()
        if coming is None:  # what is leaving still is not asked for
            self._offload.leaving.release()
            self._offload.leaving.room = 0  # the next step may be of a smaller size
            return
        coming.fetch(steps=coming.distance)
        coming.distance = max(coming.distance - 1, 1)


class BlockResults:
    """What one run of a block keeps in main memory."""

    def __init__(
        self,
        offload: ActivationOffload,
        own: Own,
        there_anyway: set[int],
        before: "Callable[[], BlockResults | None]",
    ) -> None:
        """`there_anyway`: addresses of what is not the run's own."""
        self._offload, self._own, self._there_anyway = offload, own, there_anyway
        self.before = before
        self.distance = 1  # blocks from this one to the next that has some
        self._num_bytes = 0
        self._parts: list[Callable[[], _Result | None]] = []  # in the order in which they left
        # By address: what leaves, as long as it is there, since nothing else lies there then.
        self._known: dict[int, tuple[Callable[[], Tensor | None], Callable[[], _Result | None]]] = {}

    def own(self, tensor: Tensor) -> "Tensor | Away":
        """What is kept in the place of `tensor`: its memory is moved once, however many keep it."""
        storage = tensor.untyped_storage()
        size, address = tensor.element_size(), storage.data_ptr()
        num_bytes = storage.nbytes()
        is_whole = num_bytes <= 1.25 * tensor.numel() * size and num_bytes % size == 0
        if num_bytes < LEAST or not is_whole or address in self._there_anyway:
            return self._own(tensor)
        leaving, known = self._known.get(address, (_nothing, _nothing))
        found, there = known(), leaving()
        if found is None or there is None or there.dtype != tensor.dtype:
            found = self._park(tensor.as_strided((num_bytes // size,), (1,), 0), address)
        found.num_holders += 1
        return found

    def close(self) -> None:
        """The block has run."""
        self._known.clear()
        leaving = self._offload.leaving
        leaving.room = max(leaving.room, self._num_bytes)

    def fetch(self, *, steps: int) -> None:
        """Begin to copy back what is not there yet, or as much of it as is due where there are so many steps for it."""
        rest = [part for each in reversed(self._parts) if (part := each()) is not None and not part.parked.is_fetched]
        due = sum(part.parked.num_bytes for part in rest) / steps
        for part in rest:
            if due <= 0:
                break
            part.parked.fetch()
            due -= part.parked.num_bytes

    def _park(self, memory: Tensor, address: int) -> "_Result":
        leaving, num_bytes = self._offload.leaving, memory.numel() * memory.element_size()
        self._num_bytes += num_bytes
        leaving.release(max(leaving.room, self._num_bytes) - num_bytes)
        found = _Result(self._offload.park(memory))
        self._parts.append(weakref.ref(found))
        self._known[address] = weakref.ref(memory), weakref.ref(found)
        return found


class _Result(Away):
    """One tensor's memory; it stays on the device until the last of its holders has asked for it."""

    def __init__(self, parked: Parked) -> None:
        self.parked = parked
        self.num_holders = 0

    def back(self) -> Tensor:
        """See `Away`."""
        self.num_holders -= 1
        return self.parked.come_back(stays=self.num_holders > 0)


def _nothing() -> None:
    return None

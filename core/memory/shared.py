"""Swapped blocks in main memory that the ranks of a machine hold together: filled by one rank, read by all.

Four GPUs that swap 40 blocks of 0.7 GB would else take 112 GB for 28 GB of weights. Each rank pins the memory for its own
GPU. Blocks are dealt over the ranks, so that each fills its part of them.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import START_AGAIN, RunError
from ..parallel.agree import ElsewhereError
from ..parallel.world import World
from ..pinned import SharedBuffer, Ticket
from .master import BlockLayout, BlockMaster, HeldKind, fill, frozen_tensors

_Tickets = Mapping[int, tuple[Ticket, BlockLayout]]
_MASTERS: WeakKeyDictionary[nn.Module, "SharedMaster"] = WeakKeyDictionary()
_PROBE_BYTES = 1 << 12


class SharedMaster(BlockMaster):
    """As BlockMaster, in memory that other processes of the machine have too. Whole only after `attach`."""

    def __init__(self, block: nn.Module, kind: HeldKind, *, device: torch.device, is_owner: bool, keeps: bool) -> None:
        """The owner takes the weights over; the others get the owner's by `attach`.

        `keeps`: until then they keep their own; else they give them up, and the block may be on the meta device.
        ConfigError if the block's tensors are of a kind that cannot be streamed, RunError if memory refuses.
        """
        if not is_owner and any(tensor.is_meta for tensor in frozen_tensors(block)):
            block.to_empty(device="cpu")  # memory that is never written takes none
        self.tensors = frozen_tensors(block)
        self.layout = BlockLayout.of(self.tensors)
        self.kind = kind
        self._pinned = kind == "pinned" and device.type == "cuda"
        self._buffer: SharedBuffer | None = None
        with torch.inference_mode(False), torch.no_grad():
            if is_owner:
                self._hold(SharedBuffer.create(self.layout.num_bytes, pinned=self._pinned))
                fill(self.bytes, self.layout, self.tensors)
            elif keeps:
                self._views = [tensor.data for tensor in self.tensors]
            else:
                self._views = self.layout.absent(torch.device("cpu"))
        self._is_owner = is_owner
        self.rest()

    @property
    def bytes_on_host(self) -> int:
        """Bytes of main memory; those of a block count once, at its owner."""
        return self.layout.num_bytes if self._is_owner else 0

    @property
    def ticket(self) -> Ticket | None:
        """By which the others attach; None where this is not the owner."""
        return None if self._buffer is None else self._buffer.ticket

    def attach(self, ticket: Ticket, layout: BlockLayout) -> None:
        """Take the weights from the owner's memory, where they lie as `layout` says."""
        if [(s.dtype, s.shape) for s in layout.spans] != [(s.dtype, s.shape) for s in self.layout.spans]:
            raise RunError(
                "The GPUs of this machine have read different models: start the run again.", about=START_AGAIN
            )
        self.layout = layout
        with torch.inference_mode(False), torch.no_grad():
            self._hold(SharedBuffer.attach(ticket, pinned=self._pinned))
        self.rest()

    def settle(self) -> None:
        """All have attached: nobody else can any more."""
        if self._buffer is not None:
            self._buffer.settle()

    def _hold(self, buffer: SharedBuffer) -> None:
        self._buffer, self.bytes = buffer, buffer.bytes
        self._views = self.layout.views(buffer.bytes)


def master_of(block: nn.Module) -> SharedMaster | None:
    """The block's master, where ranks hold it together."""
    return _MASTERS.get(block)


def remember(block: nn.Module, master: SharedMaster) -> None:
    """All ranks of the machine have the block's master: the next plan may use it on."""
    _MASTERS[block] = master


def forget(block: nn.Module) -> None:
    """The block's weights have another master now."""
    _MASTERS.pop(block, None)


def forget_all() -> None:
    """What one rank has may no longer be what the others have: nothing is used on."""
    _MASTERS.clear()


@lru_cache(maxsize=1)  # the machine stays the same, and later there may be a rank that has no time for this
def sharing_problem(world: World) -> str:
    """Why the ranks of this machine can't hold memory together, tried with a page of it; "" if they can. All ranks call it."""
    problem, probe = "", None
    try:
        probe = SharedBuffer.create(_PROBE_BYTES, pinned=False)
        probe.bytes.fill_(world.rank % 256)
    except OSError as error:
        problem = str(error)
    tickets = world.tell(None if probe is None else probe.ticket)
    for rank in world.machine:
        if tickets[rank] is not None and not problem:
            problem = _try(tickets[rank], rank % 256)
    return next((each for each in world.tell(problem) if each), "")


def _try(ticket: Ticket, expected: int) -> str:
    try:
        found = int(SharedBuffer.attach(ticket, pinned=False).bytes[0])
    except OSError as error:
        return str(error)
    return "" if found == expected else "what one process writes, another does not read"


def attach_all(masters: Mapping[int, SharedMaster], world: World) -> None:
    """Let every rank of a machine have what the others have filled. All ranks call it, with masters of the same blocks.

    A rank that has failed before calls `give_up` in its place. ElsewhereError on the others then, and where one can't attach.
    """
    told = world.tell({i: (master.ticket, master.layout) for i, master in masters.items() if master.ticket is not None})
    if None in told:
        raise ElsewhereError
    error = _attach_others(masters, {rank: told[rank] for rank in world.machine if rank != world.rank})
    failed = world.tell(error is not None)  # by now all have attached who can
    for master in masters.values():
        master.settle()
    if error is not None:
        raise error
    if any(failed):
        raise ElsewhereError


def give_up(world: World) -> None:
    """Tell the other ranks, which wait in `attach_all`, that there will be nothing of this one."""
    with suppress(RuntimeError):  # the others have ended; what failed here is what counts
        world.tell(None)


def _attach_others(masters: Mapping[int, SharedMaster], told: Mapping[int, _Tickets]) -> Exception | None:
    try:
        for tickets in told.values():
            for index, (ticket, layout) in tickets.items():
                masters[index].attach(ticket, layout)
    except Exception as error:
        return error
    return None

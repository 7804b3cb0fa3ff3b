"""Block swap: the frozen weights of some blocks stay in main memory, and are on the device only while they are used.

Here it is called streaming, because weights go one way: they are never changed, so nothing has to be copied back. The
device has a ring of a few slots, each as large as the largest swapped block. While a block computes, the weights of the
next one are copied. Memory-mapped weights, which lie in a file, are read into staging memory before that.

Where the base is spread over the GPUs of a machine, a block's bytes come from the shares of all of them instead, into the same
ring; see `sharded.py`. All ranks then enter the same blocks in the same order.

A block is entered twice in training: when it is called, and when its backward begins, which a hook on its output tells.
Each time its tensors are pointed at the memory of a slot. So the backward must read the weights through the block's own
tensor objects. Gradient checkpointing sees to that: it runs the block again or, when compiled, keeps the objects. Anything
else that autograd would keep of a slot is refused.

A slot is in use from one `enter` to the next, of any block. In the forward, all work of a block has been queued by then. In
the backward, too, all work of a block is queued before the block below is entered: autograd runs ready nodes in the reverse
order of their making (torch/csrc/autograd/engine.cpp, CompareNodeTaskTime), and the nodes of a block are made after those of
the blocks below. Queued is not done, so each copy waits for the point in the queue that the device has to pass first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..errors import ConfigError
from ..parallel.shards import Gather
from ..settings.memory import MasterKind
from ..wan.model import RunBlock
from . import shared
from .copies import NUM_STAGED, Arrival, CudaEvent, Loader, StagedLoader, open_stream
from .master import BlockMaster, HeldKind
from .masters import MasterMaker
from .order import travel, upcoming
from .sharded import GatherLoader, ShardedMaster, take_back


@dataclass(eq=False)
class RingSlot:
    """Device memory for one block, and what is in it."""

    bytes: Tensor
    block: int | None = None
    arrival: Arrival | None = None  # None once the computation waits for it
    views: dict[int, list[Tensor]] = field(default_factory=dict)  # by block


class BlockStreamer:
    """Brings the weights of streamed blocks to `device` before each call of a block, and before its backward.

    Put it around all else: `streamer.wrap(offload.wrap(with_compile(with_checkpointing(run_block))))`. CUDA graphs
    cannot be used, since addresses change. `reset` after an exception forgets what the ring holds.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        *,
        masters: Mapping[int, BlockMaster],
        slots: int = 2,
    ) -> None:
        """`blocks`: all of the model, in order; `masters`: of those to be streamed, by index, of any kinds.

        Trainable parameters of the streamed blocks move to `device` and stay; the other blocks are expected there.
        ConfigError for a block that is not there, or fewer than one slot.
        """
        if not masters or not set(masters) <= set(range(len(blocks))):
            raise ConfigError(f"The blocks to stream must be some of 0 to {len(blocks) - 1}, got {sorted(masters)}.")
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, got {slots}.")
        self.streamed = sorted(masters)
        self.masters = dict(masters)
        self._indices = {block: index for index, block in enumerate(blocks)}
        self._rebound = {id(tensor) for master in masters.values() for tensor in master.tensors}
        self._stream = open_stream(device)
        largest = max(master.slot_bytes for master in masters.values())
        with torch.inference_mode(False), torch.no_grad():
            for index in self.streamed:
                _move_trainable(blocks[index], device)
            self._pinned = Loader(self._stream)
            self._staged = self._open_staged(device)
            self._gathering = self._open_gathering(device)
            self.slots = [
                RingSlot(torch.empty(largest, dtype=torch.uint8, device=device))
                for _ in range(min(slots, len(self.streamed)))
            ]
        for slot in self.slots:
            self._stream.keep(slot.bytes)
        # Of other blocks that are staged, each takes a buffer for a moment.
        self._num_ahead = NUM_STAGED - any(master.kind == "pageable" for master in masters.values())

    @property
    def bytes_on_device(self) -> int:
        """Bytes of the ring, and of this rank's shares; trainable parameters are not counted."""
        shares = sum(master.bytes_on_device for master in self.masters.values())
        return shares + sum(slot.bytes.numel() for slot in self.slots)

    @property
    def bytes_on_host(self) -> int:
        """Bytes of main memory that the streamed weights and their staging hold."""
        staging = 0 if self._staged is None else self._staged.bytes_on_host
        return staging + sum(master.bytes_on_host for master in self.masters.values())

    def wrap(self, run_block: RunBlock) -> RunBlock:
        """`run_block`, which must be checkpointed in training, with the block's weights on the device.

        The result raises ConfigError for a block of another model: a copy needs a streamer of its own.
        """

        def run_streamed(block: nn.Module, *inputs: Tensor) -> Tensor:
            index = self._indices.get(block)
            if index is None:
                raise ConfigError("This block was not given to the streamer: a copy of a model needs one of its own.")
            trains = torch.is_grad_enabled()
            self.enter(index, backward=False, returns=trains)
            if not trains:
                return run_block(block, *inputs)
            with saved_tensors_hooks(self.check_saved, _same):
                x = run_block(block, *inputs)
            if x.requires_grad:
                x.register_hook(lambda _: self.enter(index, backward=True, returns=True))
            return x

        return run_streamed

    def check_saved(self, tensor: Tensor) -> Tensor:
        """`tensor`, which autograd is about to keep for a backward. ConfigError if a slot could change under it."""
        if id(tensor) not in self._rebound:
            address = tensor.untyped_storage().data_ptr()
            if any(slot.bytes.data_ptr() == address for slot in self.slots):
                raise ConfigError(
                    "Streamed blocks can be trained only with checkpointing: switch it on, or keep all blocks on the "
                    "device."
                )
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        """`tensor`, or a copy of what lies in a slot, which could change under it before the backward."""
        address = tensor.untyped_storage().data_ptr()
        return tensor.clone() if any(slot.bytes.data_ptr() == address for slot in self.slots) else tensor

    def enter(self, index: int, *, backward: bool, returns: bool) -> None:
        """Give up the block before, have the weights of block `index` on the device, and begin to fetch the next ones.

        `returns`: the forward is followed by a backward.
        """
        wanted = upcoming(self.streamed, index, backward=backward, returns=returns)[: len(self.slots)]
        after = self._stream.mark()
        for soon in wanted:
            self._fetch(soon, wanted, after)
        self._read_ahead(travel(self.streamed, index, backward=backward, returns=returns, slots=len(self.slots)))
        if index in self.masters:
            slot = self._holding(index)
            assert slot is not None
            if slot.arrival is not None:
                slot.arrival.hold_compute()
                slot.arrival = None

    def reset(self) -> None:
        """Forget what the ring holds; all weights rest in main memory."""
        for slot in self.slots:
            self._evict(slot)

    def close(self) -> None:
        """Stop streaming: wait for copies, free the ring. The blocks cannot be called through the streamer any more."""
        self.reset()
        for loader in (self._staged, self._pinned, self._gathering):
            if loader is not None:
                loader.close()
        self.slots.clear()

    def _open_staged(self, device: torch.device) -> StagedLoader | None:
        """With buffers for the largest of the blocks that need them."""
        staged = [master for master in self.masters.values() if master.kind in ("pageable", "mapped")]
        sizes = [master.layout.num_bytes for master in staged]
        return StagedLoader(self._stream, max(sizes), pinned=device.type == "cuda") if sizes else None

    def _open_gathering(self, device: torch.device) -> GatherLoader | None:
        groups = [master.group for master in self.masters.values() if isinstance(master, ShardedMaster)]
        return GatherLoader(self._stream, Gather(groups[0], device)) if groups else None

    def _start(self, index: int, target: Tensor, after: CudaEvent) -> Arrival:
        """Begin to bring the bytes of block `index` into a slot."""
        master = self.masters[index]
        if isinstance(master, ShardedMaster):
            assert self._gathering is not None
            return self._gathering.gather(target[: master.slot_bytes], master.bytes, index, after)
        loader = self._pinned if master.kind == "pinned" else self._staged
        assert loader is not None
        return loader.start(target[: master.slot_bytes], master.bytes, after)

    def _read_ahead(self, order: Sequence[int]) -> None:
        """Have the next blocks of `order` that lie in files read, as long as they are not on their way to the device."""
        if self._staged is None:
            return
        present = {slot.block for slot in self.slots}
        soon: list[int] = []
        for index in order:
            if index in present:
                present.remove(index)  # by the time that it is needed again, it will be gone
            elif self.masters[index].kind == "mapped" and index not in soon:
                soon.append(index)
        self._staged.read_ahead([self.masters[index].bytes for index in soon[: self._num_ahead]])

    def _holding(self, index: int) -> RingSlot | None:
        return next((slot for slot in self.slots if slot.block == index), None)

    def _fetch(self, index: int, wanted: Collection[int], after: CudaEvent) -> None:
        """Have block `index` in the ring, in the place of one that is not `wanted`."""
        if self._holding(index) is not None:
            return
        slot = next(slot for slot in self.slots if slot.block not in wanted)
        self._evict(slot)
        master = self.masters[index]
        arrival = self._start(index, slot.bytes, after)
        if index not in slot.views:
            with torch.inference_mode(False), torch.no_grad():
                slot.views[index] = master.layout.views(slot.bytes)
        master.bind(slot.views[index])
        slot.block, slot.arrival = index, arrival

    def _evict(self, slot: RingSlot) -> None:
        if slot.block is not None:
            self.masters[slot.block].rest()
        if slot.arrival is not None:  # else it would come into the slot after what comes next
            slot.arrival.cancel()
        slot.block = slot.arrival = None


def stream_blocks(
    blocks: Sequence[nn.Module],
    device: torch.device,
    *,
    streamed: Collection[int],
    slots: int = 2,
    master: MasterKind = "pinned",
    mapped: Collection[int] = (),
    folder: Path | None = None,
) -> BlockStreamer:
    """A streamer for the blocks `streamed`, of a run on one device; the others move to it. See `hold_blocks`.

    `mapped`: those of `streamed` that are "mapped", whatever `master` says; `folder` is where they have their files.
    """
    kinds: dict[int, HeldKind] = {index: "mapped" if index in mapped else master for index in streamed}
    streamer = hold_blocks(blocks, MasterMaker(kinds, device, folder=folder), slots=slots)
    if streamer is None:
        raise ConfigError("There are no blocks to stream: name some.")
    return streamer


def hold_blocks(blocks: Sequence[nn.Module], maker: MasterMaker, *, slots: int = 2) -> BlockStreamer | None:
    """A streamer for the blocks that have a kind, None if there are none; the others move to the device.

    The peak is one block above the result.
    For a model that is in memory; one that is being loaded can give each block its master as soon as it is there. Blocks
    may come in main memory or on any device, with or without adapters, or from a streamer that was closed. With several
    ranks all of them call it alike.
    """
    with maker.together():
        for index, block in enumerate(blocks):
            if index not in maker.kinds:
                take_back(block)
                block.to(maker.device)
                shared.forget(block)
            maker.take(index, block, keeps=True)
        masters = maker.finish()
    return BlockStreamer(blocks, maker.device, masters=masters, slots=slots) if masters else None


def _move_trainable(block: nn.Module, device: torch.device) -> None:
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device)


def _same(tensor: Tensor) -> Tensor:
    return tensor

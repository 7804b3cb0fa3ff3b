"""The share of a block's frozen weights that one GPU holds, where the base is spread over the GPUs of a machine.

See `core.parallel.shards` for how the shares come together, and `streaming.py` for when.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..parallel.shards import Gather, check_gather, gathered_bytes, share_bytes
from ..parallel.world import World
from .copies import Arrival, CudaEvent, Loader, Stream, arrived
from .master import BlockLayout, BlockMaster, Span, frozen_tensors

_MASTERS: WeakKeyDictionary[nn.Module, "ShardedMaster"] = WeakKeyDictionary()


class ShardedMaster(BlockMaster):
    """One rank's share of a block's frozen tensors, on its GPU. All ranks of a machine make theirs of the same block.

    At rest the tensors hold nothing that can be computed with: every number is NaN, or the largest of its kind.
    """

    def __init__(self, block: nn.Module, *, device: torch.device, world: World) -> None:
        """Takes this rank's share of the weights, wherever they lie; what they lay in before is freed.

        ConfigError if the block's tensors are of a kind that cannot be streamed, or where GPUs can't gather.
        """
        check_gather(device)
        self.tensors = frozen_tensors(block)
        self.layout = BlockLayout.of(self.tensors)
        self.kind = "sharded"
        self.group, self._ranks = world.machine_group, len(world.machine)
        size = share_bytes(self.layout.num_bytes, self._ranks)
        with torch.inference_mode(False), torch.no_grad():
            self.bytes = torch.zeros(size, dtype=torch.uint8, device=device)
            _fill_share(self.bytes, world.machine.index(world.rank) * size, self.layout, self.tensors)
            self._views = self.layout.absent(device)
        self.rest()
        _MASTERS[block] = self

    @property
    def bytes_on_host(self) -> int:
        return 0

    @property
    def bytes_on_device(self) -> int:
        return self.bytes.numel()

    @property
    def slot_bytes(self) -> int:
        return gathered_bytes(self.layout.num_bytes, self._ranks)

    def gathered(self) -> list[Tensor]:
        """The weights, in the order of `layout`, in memory of their own. All ranks of the machine do it together."""
        with torch.inference_mode(False), torch.no_grad():
            content = torch.empty(self.slot_bytes, dtype=torch.uint8, device=self.bytes.device)
            dist.all_gather_into_tensor(content, self.bytes, group=self.group)
            return self.layout.views(content)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have all of the block's weights on the device meanwhile. All ranks of the machine do it together."""
        self.bind(self.gathered())
        try:
            yield
        finally:
            self.rest()


class GatherLoader(Loader):
    """Fills device buffers from the shares of all ranks."""

    def __init__(self, stream: Stream, gather: Gather) -> None:
        super().__init__(stream)
        self._gather = gather

    def gather(self, target: Tensor, share: Tensor, index: int, after: CudaEvent) -> Arrival:
        """Begin to gather block `index`, once the computation has passed `after`. RunError if ranks have come apart."""
        self._gather.check()
        return arrived(self._stream, self._stream.run(lambda: self._gather(target, share, index), after))


def master_of(block: nn.Module) -> ShardedMaster | None:
    """The share of the block that this rank holds; None where the block's weights are all here."""
    return _MASTERS.get(block)


def whole(block: nn.Module) -> AbstractContextManager[None]:
    """Have the block's weights at hand meanwhile, wherever they rest. All ranks of a machine do it together."""
    master = master_of(block)
    return nullcontext() if master is None else master.whole()


def take_back(block: nn.Module) -> None:
    """Give the block its weights again, on the device, and its share up. All ranks of a machine do it together."""
    master = master_of(block)
    if master is not None:
        master.bind(master.gathered())
        del _MASTERS[block]


def forget(block: nn.Module) -> None:
    """The block's weights have another master now."""
    _MASTERS.pop(block, None)


def _fill_share(share: Tensor, start: int, layout: BlockLayout, tensors: list[Tensor]) -> None:
    """Copy what of the block's run of bytes lies from `start` on. Bytes between tensors stay 0."""
    end = start + share.numel()
    for span, tensor in zip(layout.spans, tensors, strict=True):
        low, high = max(start, span.start), min(end, span.start + span.num_bytes)
        if low < high:
            content = _flat(tensor.detach(), span)[low - span.start : high - span.start]
            share[low - start : high - start].copy_(content)


def _flat(tensor: Tensor, span: Span) -> Tensor:
    """The tensor's bytes in their order in the layout; a copy only where the tensor lies otherwise."""
    if tuple(tensor.stride()) != span.strides:
        held = torch.empty_strided(span.shape, span.strides, dtype=span.dtype, device=tensor.device)
        tensor = held.copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset()).view(torch.uint8)

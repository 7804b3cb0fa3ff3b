"""The frozen base spread over the GPUs of a machine: which bytes of a block each rank holds, and how they come together.

A block's frozen tensors are one run of bytes (`core.memory.master`), so that every precision is the same here. Each rank
keeps one share of the run on its GPU. When the block is needed, all ranks gather the shares into a slot of the ring that
block swap has: one `all_gather_into_tensor` for a block, ahead of need. That is the idea of ZeRO-3 (Rajbhandari et al.,
2020, arXiv:1910.02054) and of PyTorch's FSDP, without what only weights that are trained need: nothing is scattered back.

Why not FSDP2 (torch.distributed.fsdp.fully_shard) itself: it spreads parameters, and quantized weights and their scales are
buffers here; all parameters of a group must have one dtype, and a block has 8-bit weights beside biases in 16 and norms in 32
bits; it gathers in hooks around `module.__call__`, and our kernels and our recomputing call a block's functions; and it would
spread the adapter, whose gradients are summed whole.

All ranks of a machine have to ask for the same blocks in the same order. So they need the same number of forwards, also in
validation and in previews, in which every rank takes part.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import ConfigError, RunError

SHARE_ALIGNMENT = 256  # bytes, of each rank's share: NCCL is fastest with 16 or more
_NO_NCCL = (
    "The base can't be spread over GPUs without NCCL, which this PyTorch lacks (it has none for Windows): set the sharded base"
    " to whole."
)


def share_bytes(num_bytes: int, ranks: int) -> int:
    """Bytes that each of `ranks` holds of a block of `num_bytes`."""
    return -(-num_bytes // (ranks * SHARE_ALIGNMENT)) * SHARE_ALIGNMENT


def gathered_bytes(num_bytes: int, ranks: int) -> int:
    """Bytes of a block's slot: its run of bytes, and what rounds the shares up to one size."""
    return share_bytes(num_bytes, ranks) * ranks


def sharded_bytes(block_bytes: int, *, blocks: int, ranks: int, slots: int = 2) -> int:
    """Bytes on each GPU of `blocks` blocks that are spread over `ranks` GPUs: the shares, and the slots they are gathered in.

    `block_bytes`: of the largest block, in the layout in which it is held. With block swap beside it the slots are the same
    ones: count them once.
    """
    ring = min(slots, blocks) * gathered_bytes(block_bytes, ranks)
    return blocks * share_bytes(block_bytes, ranks) + ring


def shared_ram(block_bytes: int, *, swapped: int, staged: int, ranks: int, is_shared: bool = True) -> int:
    """Bytes of a machine's main memory for block swap: `swapped` blocks held once, and `staged` buffers of each rank.

    `is_shared`: False where every rank has its own copy of the blocks.
    """
    return ((1 if is_shared else ranks) * swapped + ranks * staged) * block_bytes


def machines_of(local_ranks: Sequence[int]) -> list[list[int]]:
    """The ranks of each machine, from what each rank is on its own machine: torchrun numbers machine after machine."""
    machines: list[list[int]] = []
    for rank, local_rank in enumerate(local_ranks):
        if local_rank == 0:
            machines.append([])
        machines[-1].append(rank)
    return machines


def check_gather(device: torch.device) -> None:
    """ConfigError where the shares of GPUs cannot be gathered."""
    if device.type == "cuda" and not dist.is_nccl_available():
        raise ConfigError(_NO_NCCL)


class Gather:
    """Gathers the shares of blocks; the ranks of `group` call it in the same order."""

    def __init__(self, group: Any, device: torch.device) -> None:
        """`group`: of torch.distributed; None: all ranks."""
        self._group, self._size = group, dist.get_world_size(group)
        # Which block each rank means: what is gathered of two different blocks would be no block at all.
        self._meant = torch.zeros(1, dtype=torch.int64, device=device)
        self._all_meant = torch.zeros(self._size, dtype=torch.int64, device=device)
        self._is_wrong = torch.zeros(1, dtype=torch.int64, device=device)
        self._told = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")

    def __call__(self, target: Tensor, share: Tensor, index: int) -> None:
        """Fill `target` [ranks * share] uint8 with the shares of block `index`, on the current stream.

        The host does not wait.
        """
        dist.all_gather_into_tensor(target, share, group=self._group)
        self._meant.fill_(index)
        dist.all_gather_into_tensor(self._all_meant, self._meant, group=self._group)
        self._is_wrong += (self._all_meant != index).any()
        self._told.copy_(self._is_wrong, non_blocking=True)

    def check(self) -> None:
        """RunError if, as far as the device has come, ranks have asked for different blocks at the same time."""
        if self._told.item():
            raise RunError(
                "The GPUs of this run have come apart: they asked for different blocks of the model at the same time. This is"
                " a fault of the trainer; start again with the sharded base set to whole, and report it."
            )

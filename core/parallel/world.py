"""The processes of one run, one for each GPU: who this one is, and what they tell each other.

The ranks of a run are numbered from 0. Neighbours share a sample where its tokens are split (context parallel): with four
ranks and a context of two, ranks 0 and 1 train one sample and ranks 2 and 3 another. All talk goes through
torch.distributed; torchrun gives each process its number (docs.pytorch.org, "torchrun (Elastic Launch)").
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import ConfigError
from ..gpu_failure import GpuFailedError
from .progress import Progress
from .shards import machines_of

# A rank that is lost is noticed by its silence (see `watch.py`), so that waiting may take as long as work does: for a batch
# of another rank, and, by way of main memory, for a preview or a checkpoint of the first.
PATIENCE, HOST_PATIENCE = timedelta(minutes=30), timedelta(days=7)
_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"


@dataclass(frozen=True)
class World:
    """The ranks of a run, and which of them this process is; by default the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    context: int = 1  # ranks that share the tokens of a sample; a divisor of `size`
    data_group: Any = None  # of torch.distributed: the ranks that have the same part of other samples
    context_group: Any = None  # the ranks that share this rank's sample
    host_group: Any = None  # all ranks, by way of main memory: for words and votes, which wait for no GPU
    machine: tuple[int, ...] = (0,)  # the ranks of this machine, which share its main memory
    machine_group: Any = None  # the same, of torch.distributed; None: all ranks
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's folder: the events, the checkpoints, the LoRA."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """How many samples are trained side by side."""
        return self.size // self.context

    @property
    def data_rank(self) -> int:
        """Which of them is this rank's."""
        return self.rank // self.context

    @property
    def context_rank(self) -> int:
        """Which part of its tokens is this rank's."""
        return self.rank % self.context

    def add_(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in place, on the device. Every rank gets the same bits."""
        if self.size > 1:
            with self.progress.waiting():
                dist.all_reduce(tensor)
        return tensor

    def most(self, *numbers: int) -> list[int]:
        """Of each number the largest that any rank has, by way of main memory."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        with self.progress.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.host_group)
        return found.tolist()

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of each rank, by rank, by way of main memory; as many on each."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self.size == 1:
            return [own.tolist()]
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self.progress.waiting():
            dist.all_gather(found, own, group=self.host_group)
        return [each.tolist() for each in found]

    def tell(self, value: Any) -> list[Any]:
        """What each rank has to tell, by rank: small things that pickle can write, by way of main memory."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        with self.progress.waiting():
            dist.all_gather_object(told, value, group=self.host_group)
        return told

    def from_first(self, value: Any) -> Any:
        """What the first rank has, on all of them."""
        if self.size == 1:
            return value
        held = [value]
        with self.progress.waiting():
            dist.broadcast_object_list(held, src=0, group=self.host_group)
        return held[0]

    def wait_for_all(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            with self.progress.waiting():
                dist.barrier(group=self.host_group)


ALONE = World()


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one rank of several."""
    return int(environment.get(_SIZE, "1")) > 1


@contextmanager
def open_world(
    device: torch.device, *, context: int = 1, store: Any = None, progress: Progress | None = None
) -> Iterator[World]:
    """Join the ranks that torchrun has started; on the GPU through NCCL, on the CPU through gloo.

    `context`: see `World`. `store`: of torch.distributed, where the ranks have met already. `progress`: what notes how far this
    rank has come. ConfigError where `context` does
    not divide the number of ranks. Closed at the end, unless this rank's GPU has failed: what closes it would wait for that.
    """
    environment = os.environ
    rank, size = int(environment[_RANK]), int(environment[_SIZE])
    if size % context:
        raise ConfigError(f"{size} GPUs can't be split into groups of {context}: set context_parallel to a divisor.")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    bound = {"device_id": device} if device.type == "cuda" and "nccl" in backend else {}
    met = {} if store is None else {"store": store, "rank": rank, "world_size": size}
    is_answering = True
    dist.init_process_group(backend, timeout=PATIENCE, **cast(dict[str, Any], {**bound, **met}))
    try:
        world = World(
            rank=rank,
            size=size,
            local_rank=int(environment.get(_LOCAL_RANK, rank)),
            local_size=int(environment.get(_LOCAL_SIZE, size)),
            host_group=dist.new_group(backend="gloo", timeout=HOST_PATIENCE),
            progress=progress or Progress(),
        )
        world = with_groups(world, context)
        world.progress.open(device, world.data_rank if context > 1 else 0)
        world.add_(torch.zeros(1, device=device))  # opens the links, so that what they take is not counted as free
        yield world
    except GpuFailedError:
        is_answering = False
        raise
    finally:
        if is_answering:
            dist.destroy_process_group()


def with_groups(world: World, context: int) -> World:
    """The world with its ranks in groups of `context` neighbours; every rank calls it, with the same number."""
    rows = [list(range(start, start + context)) for start in range(0, world.size, context)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    machines = machines_of(world.tell(world.local_rank))
    return replace(
        world,
        context=context,
        context_group=_own_group(rows, world.rank),
        data_group=_own_group(columns, world.rank),
        machine=next(tuple(ranks) for ranks in machines if world.rank in ranks),
        machine_group=_own_group(machines, world.rank) if len(machines) > 1 else None,
    )


def _own_group(groups: Sequence[list[int]], rank: int) -> Any:
    """Make all of them, as torch.distributed asks of every rank; the one that `rank` is in."""
    made = [dist.new_group(ranks, timeout=PATIENCE) for ranks in groups]
    return next(group for group, ranks in zip(made, groups, strict=True) if rank in ranks)

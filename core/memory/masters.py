"""The masters of a model's blocks, made one by one as the blocks come, by all ranks of a machine together."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..parallel.world import ALONE, World
from . import sharded, shared
from .master import BlockMaster, HeldKind
from .sharded import ShardedMaster, whole
from .shared import SharedMaster, attach_all, give_up, sharing_problem

log = logging.getLogger(__name__)


class MasterMaker:
    """Give it every block that has a kind, in the same order on all ranks; then `finish`; all of it within `together`."""

    def __init__(
        self,
        kinds: Mapping[int, HeldKind],
        device: torch.device,
        *,
        folder: Path | None = None,
        world: World = ALONE,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        """`kinds`: by block. `folder`: for mapped blocks. `tell`: for what turns out otherwise than meant, a sentence."""
        self.kinds, self.device, self._folder, self._world, self._tell = dict(kinds), device, folder, world, tell
        self._masters: dict[int, BlockMaster] = {}
        self._new: dict[int, tuple[nn.Module, SharedMaster]] = {}
        in_memory = [index for index in sorted(kinds) if kinds[index] in ("pinned", "pageable")]
        self._owners = {index: world.machine[i % len(world.machine)] for i, index in enumerate(in_memory)}
        is_several = bool(in_memory) and len(world.machine) > 1
        self._problem = sharing_problem(world) if is_several else ""
        self._shares, self._is_told = is_several and not self._problem, False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around all that leads to `finish`: if a rank fails on the way, the others learn it there, by an ElsewhereError."""
        try:
            yield
        except BaseException:
            shared.forget_all()
            if self._shares and not self._is_told:
                self._is_told = True
                give_up(self._world)
            raise

    def needs_content(self, index: int | None) -> bool:
        """Whether this rank has any use for the weights of block `index` before `finish`; None: of what is outside of them."""
        return not self._shares or index is None or self._owners.get(index, self._world.rank) == self._world.rank

    def take(self, index: int, block: nn.Module, *, keeps: bool = False) -> None:
        """Take the weights of the block over, if it has a kind. What it had before is given up, or used on.

        `keeps`: the weights survive here if another rank fails before `finish`; a model that is being read is read again.
        """
        kind = self.kinds.get(index)
        if kind is None:
            return
        found = self._found(kind, block)
        if found is None:
            with whole(block):
                found = self._make(kind, index, block, keeps=keeps and sharded.master_of(block) is None)
            if kind != "sharded":
                sharded.forget(block)
            if not isinstance(found, SharedMaster):
                shared.forget(block)
        found.rest()  # the weights are no longer what they were meanwhile
        self._masters[index] = found

    def finish(self) -> dict[int, BlockMaster]:
        """The masters, with their weights."""
        if self._shares and not self._is_told:
            self._is_told = True
            attach_all({index: master for index, (_, master) in self._new.items()}, self._world)
            for block, master in self._new.values():
                shared.remember(block, master)
        elif self._problem:
            held = sum(self._masters[index].layout.num_bytes for index in self._owners)
            self._tell(
                f"The GPUs of this machine can't hold the swapped blocks together ({self._problem}): each has its own copy,"
                f" {len(self._world.machine)} times {held / 1e9:.1f} GB of main memory."
            )
        return self._masters

    def _found(self, kind: HeldKind, block: nn.Module) -> BlockMaster | None:
        """The master of this kind that the block has already."""
        if kind == "sharded":
            return sharded.master_of(block)
        held = shared.master_of(block) if self._shares else None
        return held if held is not None and held.kind == kind else None

    def _make(self, kind: HeldKind, index: int, block: nn.Module, *, keeps: bool) -> BlockMaster:
        if kind == "sharded":
            return ShardedMaster(block, device=self.device, world=self._world)
        if index in self._owners and self._shares:
            is_owner = self._owners[index] == self._world.rank
            master = SharedMaster(block, kind, device=self.device, is_owner=is_owner, keeps=keeps)
            self._new[index] = block, master
            return master
        return BlockMaster(block, kind, device=self.device, folder=self._folder if kind == "mapped" else None)

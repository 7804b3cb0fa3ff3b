"""Frozen weights that leave the device while another run trains on it, and come back.

They never change, so main memory gets them once, when they first leave; after that the device's copy is just given up, and
made anew from there. Trainable parameters stay where they are.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..settings.memory import MasterKind
from .master import BlockMaster, streamed_bytes


def parked_bytes(parts: Mapping[str, nn.Module]) -> int:
    """Bytes of main memory that the frozen weights of `parts` take."""
    return sum(streamed_bytes(part) for part in parts.values())


class Parking:
    """The copies in main memory, by the names of the parts of a model."""

    def __init__(self, device: torch.device, kind: MasterKind, folder: Path | None = None) -> None:
        """`kind` of memory, as `BlockMaster` has it; `folder`: for "mapped"."""
        self._device = device
        self._kind: MasterKind = kind
        self._folder = folder if kind == "mapped" else None
        self._masters: dict[str, BlockMaster] = {}

    def park(self, parts: Mapping[str, nn.Module]) -> None:
        """Have the frozen weights of `parts` in main memory alone; copies of what is no longer among them are given up.

        ConfigError for weights that bytes can't hold, RunError where memory or disk refuse; those that have left are then
        brought back by `wake`, and the others are where they were.
        """
        for name in self._masters.keys() - parts.keys():
            del self._masters[name]
        for name, part in parts.items():
            if name in self._masters:
                self._masters[name].rest()
            elif streamed_bytes(part):
                self._masters[name] = BlockMaster(part, self._kind, device=self._device, folder=self._folder)

    def wake(self) -> None:
        """Have them on the device again; the copies stay."""
        with torch.inference_mode(False), torch.no_grad():
            for master in self._masters.values():
                there = torch.empty(master.layout.num_bytes, dtype=torch.uint8, device=self._device)
                there.copy_(master.bytes, non_blocking=True)
                master.bind(master.layout.views(there))

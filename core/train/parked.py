"""What of a model lies in main memory alone while another run has the device."""

import gc
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..memory.master import BlockMaster
from ..memory.parking import Parking, parked_bytes
from ..plan.host import available_ram, pinnable_ram
from ..plan.switching import parking_kind
from ..wan.model import WanTransformer


class ParkedModel:
    """The frozen weights of one model. Those of swapped blocks are in main memory already."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        """`folder`: for weights that main memory does not suffice for."""
        self._device, self._folder = device, folder
        self._parking: Parking | None = None
        self.swapped: Mapping[int, BlockMaster] = {}  # the masters of blocks that were swapped when the model left

    def leave(self, model: WanTransformer, swapped: Mapping[int, BlockMaster]) -> None:
        """Have the weights in main memory. The model's features are off; `swapped`: what they had there.

        ConfigError or RunError if that can't be; what has left is then brought back by `come_back`.
        """
        self.swapped = swapped
        parts: dict[str, nn.Module] = {name: part for name, part in model.named_children() if name != "blocks"}
        parts |= {f"blocks.{index}": block for index, block in enumerate(model.blocks) if index not in swapped}
        if self._parking is None:
            kind = parking_kind(parked_bytes(parts), available_ram(), pinnable_ram())
            self._parking = Parking(self._device, kind, self._folder)
        self._parking.park(parts)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Have those that were not swapped on the device again."""
        if self._parking is not None:
            self._parking.wake()

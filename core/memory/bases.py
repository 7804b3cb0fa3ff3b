"""The frozen weights of two models of one build, of which one at a time is in the model that runs.

So one adapter is trained through both: its layers stay, and the weights below them change. On the device they are written
over in place, or their tensors are pointed at others there; of swapped blocks the masters change places. The ring, kernels,
checkpointing and the adapter never learn of it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings.memory import MasterKind
from ..wan.model import WanTransformer
from .master import BlockLayout, BlockMaster, FrozenCopy, frozen_tensors, streamed_bytes
from .streaming import BlockStreamer


class TwoBases:
    """Base number 0 is in `model` at first; `other`, which runs never, has the weights of the one that waits."""

    def __init__(self, model: WanTransformer, other: WanTransformer, device: torch.device) -> None:
        """Call `hold` next."""
        self._model, self._other, self._device = model, other, device
        self._copies: dict[str, list[FrozenCopy]] = {}  # of both bases, by the name of a part that is on the device
        self._waiting: dict[int, BlockMaster] = {}  # of swapped blocks: of the base that is not in the model
        self.present = 0

    def hold(self, swapped: Mapping[int, BlockMaster], kind: MasterKind | None, folder: Path | None = None) -> None:
        """After the model's features were put on, or changed. `swapped`: the masters of its swapped blocks.

        `kind`: where both bases' weights of the other parts lie; None: on the device. `folder`: for what is mapped.
        ConfigError for models that are not of one build, RunError where memory or disk refuse.
        """
        for index, master in swapped.items():
            self._copies.pop(f"blocks.{index}", None)
            self._wait_as(index, master, folder)
        for index in self._waiting.keys() - swapped.keys():
            del self._waiting[index]
        parts = zip(_parts(self._model, swapped).items(), _parts(self._other, swapped).values(), strict=True)
        for (name, part), waiting in parts:
            if name not in self._copies:
                self._copies[name] = self._copies_of(name, part, waiting, kind, folder)

    def use(self, number: int, streamer: BlockStreamer | None) -> bool:
        """Have base `number` in the model, between two forwards; whether it was not there. `streamer`: the model's."""
        if number == self.present:
            return False
        with torch.inference_mode(False), torch.no_grad():
            if streamer is not None and self._waiting:
                streamer.reset()
                for index, master in self._waiting.items():
                    streamer.masters[index].exchange(master)
            parts, others = _parts(self._model, self._waiting), _parts(self._other, self._waiting)
            for name, copies in self._copies.items():
                _give(frozen_tensors(parts[name]), copies[number])
                _bind(frozen_tensors(others[name]), copies[1 - number])
        self.present = number
        return True

    def bytes_beside(self, swapped: Mapping[int, object]) -> int:
        """Of one base, without these blocks."""
        return sum(streamed_bytes(part) for part in _parts(self._model, swapped).values())

    @property
    def bytes_on_host(self) -> int:
        """Of main memory, without the swapped blocks of the base that is in the model."""
        copies = [copy for both in self._copies.values() for copy in both if not copy.is_on_device]
        return sum(copy.layout.num_bytes for copy in copies) + sum(m.bytes_on_host for m in self._waiting.values())

    def _wait_as(self, index: int, master: BlockMaster, folder: Path | None) -> None:
        """The block of the base that waits, as the model's own is held."""
        found = self._waiting.get(index)
        if found is not None and found.kind == master.kind:
            return
        assert master.kind != "sharded", "one LoRA for both experts is trained on one GPU"
        block = self._other.blocks[index]
        _check_alike(f"blocks.{index}", master.layout, BlockLayout.of(frozen_tensors(block)))
        place = folder if master.kind == "mapped" else None
        self._waiting[index] = BlockMaster(block, master.kind, device=self._device, folder=place)

    def _copies_of(
        self, name: str, part: nn.Module, waiting: nn.Module, kind: MasterKind | None, folder: Path | None
    ) -> list[FrozenCopy]:
        """Both bases' weights of a part, by the bases' numbers."""
        here, away = frozen_tensors(part), frozen_tensors(waiting)
        _check_alike(name, BlockLayout.of(here), BlockLayout.of(away))
        of_present = FrozenCopy(here, kind, device=self._device, folder=folder)
        if kind is None:
            _bind(here, of_present)
        of_other = FrozenCopy(away, kind, device=self._device, folder=folder)
        _bind(away, of_other)
        return [of_present, of_other] if self.present == 0 else [of_other, of_present]


def _parts(model: WanTransformer, swapped: Mapping[int, object]) -> dict[str, nn.Module]:
    """By name, all that holds frozen weights but the swapped blocks."""
    found: dict[str, nn.Module] = {name: part for name, part in model.named_children() if name != "blocks"}
    found |= {f"blocks.{index}": block for index, block in enumerate(model.blocks) if index not in swapped}
    return {name: part for name, part in found.items() if frozen_tensors(part)}


def _give(tensors: list[Tensor], copy: FrozenCopy) -> None:
    """Their addresses stay, unless the copy lies on the device, too."""
    if copy.is_on_device:
        _bind(tensors, copy)
        return
    for tensor, view in zip(tensors, copy.views, strict=True):
        tensor.copy_(view, non_blocking=True)


def _bind(tensors: list[Tensor], copy: FrozenCopy) -> None:
    for tensor, view in zip(tensors, copy.views, strict=True):
        tensor.data = view


def _check_alike(name: str, one: BlockLayout, other: BlockLayout) -> None:
    if one != other:
        raise ConfigError(
            f"the two experts' weights differ in how {name} is stored, so that they can't take turns in one model: use files"
            " of the same format for both (both bf16, or both of the same GGUF kind)."
        )

"""Puts any trainer's LoRA on a model that only generates, and switches it on and off without changing the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .formats import LoraModule
from .other_files import OtherModule


class LoraSwitch:
    """Whether the LoRA that `attach` put on a model has an effect; it has to begin with."""

    def __init__(self) -> None:
        self.is_on = True


def attach(model: nn.Module, modules: Mapping[str, LoraModule | OtherModule], strength: float = 1.0) -> LoraSwitch:
    """Each layer that has one of `modules` now adds strength * (alpha / rank) * up @ down @ input, or another kind's change.

    Weights stay as they are, so they may be quantized, and switched off the model computes what it did before to the
    bit. The products are in the dtype of the layer's input. Every module must have its place in the model, in the right
    shape: `transfer_report` tells.
    """
    switch = LoraSwitch()
    for path, module in modules.items():
        change = _Change if isinstance(module, LoraModule) else _DenseChange
        model.get_submodule(path).register_forward_hook(change(module, strength, switch))  # type: ignore[arg-type]
    return switch


class _Change:
    """Adds a LoRA's part to what a layer gives; its factors move to the input's device and dtype once."""

    def __init__(self, module: LoraModule, strength: float, switch: LoraSwitch) -> None:
        self._down = module.down
        self._up = module.up.float() * (strength * module.scale)
        self._switch = switch

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._switch.is_on:
            return None
        x = inputs[0]
        self._down, self._up = self._down.to(x), self._up.to(x)
        return output + self._product(layer, x)

    def _product(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, nn.Conv3d):
            return F.linear(F.linear(x, self._down), self._up)
        # The patch embedding: a row of `down` is a kernel.
        down = self._down.unflatten(1, layer.weight.shape[1:])
        hidden = F.conv3d(x, down, stride=torch.Size(layer.stride))
        return F.conv3d(hidden, self._up[:, :, None, None, None])


class _DenseChange:
    """The same for another kind of adapter, whose change of the weight is made anew each time: it is as large as the weight."""

    def __init__(self, module: OtherModule, strength: float, switch: LoraSwitch) -> None:
        self._module, self._switch, self._share = module, switch, module.share_at(strength)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._switch.is_on:
            return None
        x = inputs[0]
        self._module = self._module.to(x.device)
        weight: Tensor = layer.matrix(torch.float32) if hasattr(layer, "matrix") else layer.weight  # type: ignore[operator,assignment]
        return output + F.linear(x, (self._share * self._module.delta(weight)).to(x.dtype))

"""A light forward for LoRA layers: peft keeps the parameters, their names and their state; only the arithmetic is here.

On a bf16 base peft's own forward casts the input to the adapter's fp32, multiplies in fp32, scales, adds and casts back:
each of these a pass over all tokens. Here A and B are cast instead, and y + scale * (x A^T) B^T is two products, the
second one added into the base's result. The layers of the queries, keys and values see the same x: their three A are one
matrix, so that x is read once for them, and their part of its gradient is one product. On an fp32 base the numbers are
peft's but for the order of rounding.

L tokens (any leading axes), r rank, R sum of ranks, in/out widths of the linear layer; A [r, in], B [out, r].
"""

from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..memory.recompute import products_are_kept
from ..wan.layers import SelfAttention
from .setup import adapter_modules

if TYPE_CHECKING:
    from peft.tuners.lora import Linear


def fuse_adapter(model: nn.Module) -> int:
    """Give the LoRA layers of `model` the light forward, in place; how many have it now.

    Layers of another kind than plain LoRA (DoRA, a bias on B, several adapters at once) keep peft's forward. The base
    may be any linear layer whose result is its own: not its input, and not kept for its backward.
    """
    layers = _plain_layers(model)
    for layer in layers:
        # bound to the layer, so that a deepcopy of the model gets a forward of its own
        layer.forward = MethodType(_forward, layer)
    for module in model.modules():
        if isinstance(module, SelfAttention) and all(layer in layers for layer in (module.q, module.k, module.v)):
            vars(module)["project"] = MethodType(_project, module)
    return len(layers)


def unfuse_adapter(model: nn.Module) -> None:
    """Give the LoRA layers of `model` peft's forward again."""
    for layer in adapter_modules(model).values():
        vars(layer).pop("forward", None)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            vars(module).pop("project", None)


def _plain_layers(model: nn.Module) -> "list[Linear]":
    from peft.tuners.lora import Linear

    return [layer for layer in adapter_modules(model).values() if isinstance(layer, Linear) and is_plain(layer)]


def is_plain(layer: "Linear") -> bool:
    """Whether it is the LoRA of the paper: one adapter, no DoRA, no bias on B."""
    names = layer.active_adapters
    if len(names) != 1 or names[0] not in layer.lora_A:
        return False
    return names[0] not in layer.lora_variant and not layer.lora_bias[names[0]]


def _forward(layer: "Linear", x: Tensor) -> Tensor:
    """x [..., in] -> [..., out], in x's dtype."""
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    name = layer.active_adapters[0]
    down, up = _weight(layer.lora_A[name]), _weight(layer.lora_B[name])
    x_LI = x.flatten(0, -2)  # two axes, for which a linear layer's result is no view: adding in place costs nothing
    y_LO = layer.base_layer(x_LI)
    h_LR = functional.linear(layer.lora_dropout[name](x_LI), down.to(x.dtype))
    return _add_product(y_LO, h_LR, up, layer.scaling[name]).unflatten(0, x.shape[:-1])


def _project(attention: SelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    """x [B, L, D] -> queries, keys and values, each [B, L, D]."""
    layers: list[Linear] = [attention.q, attention.k, attention.v]  # type: ignore[list-item]  # peft put them there
    names = [layer.active_adapters[0] for layer in layers]
    drops = any(isinstance(layer.lora_dropout[name], nn.Dropout) for layer, name in zip(layers, names, strict=True))
    if drops or any(layer.disable_adapters or layer.merged for layer in layers):
        return SelfAttention.project(attention, x)
    x_LI = x.flatten(0, -2)
    downs = [_weight(layer.lora_A[name]) for layer, name in zip(layers, names, strict=True)]
    h_LR = functional.linear(x_LI, torch.cat(downs).to(x.dtype))
    parts = h_LR.split([len(down) for down in downs], dim=1)
    return tuple(
        _add_product(layer.base_layer(x_LI), h, _weight(layer.lora_B[name]), layer.scaling[name]).unflatten(
            0, x.shape[:-1]
        )
        for layer, name, h in zip(layers, names, parts, strict=True)
    )


def _add_product(y: Tensor, h: Tensor, up: Tensor, scale: float) -> Tensor:
    """y [L, out] + scale * h [L, r] @ up.T, up [out, r] fp32; in eager mode into y's own memory.

    A compiler is given a plain sum, because it can fuse it into whatever reads y next; a product that adds is opaque to
    it, and copies y first (torch 2.11, addmm with out=). An autograd.Function's result that is a view may not be changed
    in place. There the scale goes into `up`: inductor 2.11 drops an alpha when it turns sum and product into addmm. Nor may
    a product that is kept for the backward.
    """
    if torch.compiler.is_compiling() or y._is_view():
        return y + functional.linear(h, (scale * up).to(h.dtype))
    factors = (h, up.to(h.dtype).t())
    return torch.addmm(y, *factors, alpha=scale) if products_are_kept() else y.addmm_(*factors, alpha=scale)


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight

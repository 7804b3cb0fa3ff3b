"""A light forward for peft's LoRA layers. peft keeps the parameters, their names and their state; only the arithmetic is here.

On a bf16 base peft's own forward casts the input to the adapter's fp32, multiplies in fp32, scales, adds and casts back:
five passes over all tokens. Here A and B are cast instead, and y + scale * (x A^T) B^T is two products, of which the second
adds to the base's result. The layers of queries, keys and values see the same x: their three A are joined into one matrix,
so that x is read once, and their part of its gradient is one product. On an fp32 base the numbers are peft's but for the
order of rounding.

L tokens (any leading axes), r rank, R sum of ranks, in/out widths of the linear layer; A [r, in], B [out, r].
"""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..memory.recompute import products_are_kept
from ..torch_compat import is_view
from ..wan.layers import SelfAttention
from .peft_hooks import factors_of, is_at_work, leaves_out, lora_layers, lora_linears, own_forward


def fuse_adapter(model: nn.Module) -> int:
    """Give the LoRA layers of `model` the light forward, in place; how many have it now.

    Layers of another kind than plain LoRA (DoRA, a bias on B, several adapters at once) keep peft's forward. The base
    may be any linear layer whose result is its own: not its input, and not kept for its backward.
    """
    layers = lora_linears(model)
    for layer in layers:
        # bound to the layer, so that a deepcopy of the model gets a forward of its own
        layer.forward = MethodType(_forward, layer)
    for module in model.modules():
        if isinstance(module, SelfAttention) and all(layer in layers for layer in (module.q, module.k, module.v)):
            vars(module)["project"] = MethodType(_project, module)
    return len(layers)


def unfuse_adapter(model: nn.Module) -> None:
    """Give the LoRA layers of `model` peft's forward again."""
    for layer in lora_layers(model).values():
        vars(layer).pop("forward", None)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            vars(module).pop("project", None)


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    """x [..., in] -> [..., out], in x's dtype."""
    if not is_at_work(layer):
        return own_forward(layer, x)
    base, down, up, scale, dropout, drops = factors_of(layer)
    x_LI = x.flatten(0, -2)  # two axes, for which a linear layer's result is no view: adding in place costs nothing
    y_LO = base(x_LI)
    h_LR = functional.linear(dropout(x_LI), down.to(x.dtype))
    if drops is not None:
        h_LR = drops(h_LR.unflatten(0, x.shape[:-1])).flatten(0, -2)
    return _add_product(y_LO, h_LR, up, scale).unflatten(0, x.shape[:-1])


def _project(attention: SelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    """x [B, L, D] -> queries, keys and values, each [B, L, D]."""
    layers = (attention.q, attention.k, attention.v)
    if not all(is_at_work(layer) and not leaves_out(layer) for layer in layers):
        return SelfAttention.project(attention, x)
    x_LI = x.flatten(0, -2)
    each = [factors_of(layer) for layer in layers]
    h_LR = functional.linear(x_LI, torch.cat([factors.down for factors in each]).to(x.dtype))
    parts = h_LR.split([len(factors.down) for factors in each], dim=1)
    return tuple(
        _add_product(factors.base(x_LI), h, factors.up, factors.scale).unflatten(0, x.shape[:-1])
        for factors, h in zip(each, parts, strict=True)
    )


def _add_product(y: Tensor, h: Tensor, up: Tensor, scale: float) -> Tensor:
    """y [L, out] + scale * h [L, r] @ up.T, up [out, r] fp32; in eager mode into y's own memory.

    A compiler is given a plain sum, because it can fuse it into whatever reads y next; a product that adds is opaque to
    it, and copies y first (torch 2.11, addmm with out=). An autograd.Function's result that is a view may not be changed
    in place. There the scale goes into `up`: inductor 2.11 drops an alpha when it turns sum and product into addmm. Nor may
    a product that is kept for the backward.
    """
    if torch.compiler.is_compiling() or is_view(y):
        return y + functional.linear(h, (scale * up).to(h.dtype))
    factors = (h, up.to(h.dtype).t())
    return torch.addmm(y, *factors, alpha=scale) if products_are_kept() else y.addmm_(*factors, alpha=scale)

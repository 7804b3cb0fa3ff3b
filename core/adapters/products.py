"""Linear layers with their adapters as one autograd function, for blocks that run by kernels; `fused` is for all others.

PyTorch's autograd would add the parts of a gradient one by one: the base's, the adapter's, and those of layers that see the
same input. Here the product that makes a part adds it as well. The base's weights are read again in the backward, so that
only the input and its product with A are kept.

L tokens (any leading axes), r rank, R sum of ranks, in/out widths of the linear layer; A [r, in], B [out, r].
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..memory.products import PART, IsUnread, LinearProduct, MakeProduct
from ..wan.layers import SelfAttention
from .around import Around, around_of, forget_around, note_around
from .kind import ADAPTER_KINDS
from .peft_hooks import carries_lora, factors_of, is_at_work, is_factor, leaves_out, lora_linears, own_forward

_FORWARD = "forward"


def use_products(model: nn.Module, make_product: MakeProduct, is_unread: IsUnread) -> None:
    """Let the linear layers of the model's blocks run as autograd functions of their own, in place.

    `make_product` is asked for each base layer; those without one stay as they are, and so do adapters that are not plain
    around a base that runs so. Those that leave something out, or are of another kind, keep their forward, and are noted for
    whoever runs a layer without it. `is_unread`: whether the result of a layer will not be read.
    """
    blocks = model.get_submodule("blocks")
    others = _others(model)
    plain = set(lora_linears(model)) - others.keys()
    layers = dict(blocks.named_modules())
    for name, layer in layers.items():
        product = None if is_factor(name) else make_product(layer)
        if product is None:
            continue
        part = LinearProduct(layer, product, int(layer.out_features), is_unread)  # type: ignore[arg-type]
        vars(layer)[PART] = part
        vars(layer)[_FORWARD] = MethodType(_forward, layer)
        above = layers[name.rpartition(".")[0]]
        if above in plain:
            above.__dict__[PART] = part._replace(layer=above)
            if not leaves_out(above):
                above.__dict__[_FORWARD] = MethodType(_adapted_forward, above)
        if above in others:
            vars(above)[PART] = part._replace(layer=above)
            note_around(above, others[above])
    for module in blocks.modules():
        if isinstance(module, SelfAttention):
            vars(module)["project"] = MethodType(_project, module)


def _others(model: nn.Module) -> dict[nn.Module, Around]:
    """The layers whose adapters are no plain LoRA, and what these do."""
    kinds = [ADAPTER_KINDS.get(name) for name in ADAPTER_KINDS.names]
    return {layer: kind.around(layer) for kind in kinds if kind.around for layer in kind.layers(model).values()}


def drop_products(model: nn.Module) -> None:
    """Give the layers their own forwards again; those of `fuse_adapter` are not put back."""
    for module in model.get_submodule("blocks").modules():
        is_own = around_of(module) is None
        forget_around(module)
        if vars(module).pop(PART, None) is not None and is_own:
            vars(module).pop(_FORWARD, None)
        if isinstance(module, SelfAttention):
            vars(module).pop("project", None)


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    """A base layer; x [..., in] -> [..., out]."""
    return _run(x, [layer])[0]


def _adapted_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """x [..., in] -> [..., out], in x's dtype."""
    if not is_at_work(layer):
        return own_forward(layer, x)
    return _run(x, [layer])[0]


def _project(attention: SelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    """x [B, L, D] -> queries, keys and values, each [B, L, D]."""
    layers = [attention.q, attention.k, attention.v]
    if any(PART not in vars(layer) or _is_other(layer) for layer in layers):
        return SelfAttention.project(attention, x)
    return _run(x, layers)


def _is_other(layer: nn.Module) -> bool:
    """Whether a layer's own forward has to run."""
    return around_of(layer) is not None or (carries_lora(layer) and (not is_at_work(layer) or leaves_out(layer)))


def _run(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """The results [..., out] of layers that see the same x [..., in]."""
    parts = tuple(vars(layer)[PART] for layer in layers)
    scales: list[float | None] = []
    factors: list[Tensor] = []
    for layer in layers:
        if carries_lora(layer):
            found = factors_of(layer)
            scales.append(found.scale)
            factors += [found.down, found.up]
        else:
            scales.append(None)
    results = _Products.apply(x.flatten(0, -2), parts, tuple(scales), *factors)
    return tuple(y.unflatten(0, x.shape[:-1]) for y in results)  # type: ignore[union-attr]


class _Products(torch.autograd.Function):
    """y [L, out] of each part: x W^T + bias, plus scale (x A^T) B^T where it has a scale and factors A and B."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, parts: tuple[LinearProduct, ...], scales: tuple[float | None, ...], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.scales = parts, scales
        ctx.set_materialize_grads(False)
        hidden = x @ _joined(factors[::2], x.dtype).t() if factors else None  # [L, R]
        rest = _by_part(scales, hidden, factors)
        results: list[Tensor] = []
        for part, (scale, h, up) in zip(parts, rest, strict=True):
            if part.is_unread(part.layer):
                results.append(x.new_empty(1).expand(len(x), part.out_features))
                continue
            y = part.product.forward(x)
            if up is not None:
                y.addmm_(h, up.to(x.dtype).t(), alpha=scale)
            results.append(y)
        ctx.save_for_backward(x if factors else None, hidden, *factors)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x, hidden, *factors = ctx.saved_tensors
        of_x: Tensor | None = None
        of_hidden: list[Tensor] = []
        of_ups: list[Tensor | None] = []
        for part, grad, (scale, h, up) in zip(ctx.parts, grads, _by_part(ctx.scales, hidden, factors), strict=True):
            if grad is None:
                of_hidden += [torch.zeros_like(h)] * (up is not None)
                of_ups += [None] * (up is not None)
                continue
            if up is not None:
                of_hidden.append(_times(grad @ up.to(grad.dtype), scale))
                of_ups.append(_times(grad.t() @ h, scale).to(up.dtype))
            if ctx.needs_input_grad[0]:
                of_x = part.product.gradient(grad, of_x)
        if not factors:
            return of_x, None, None
        of_h = of_hidden[0] if len(of_hidden) == 1 else torch.cat(of_hidden, dim=1)
        if of_x is not None:
            of_x.addmm_(of_h, _joined(factors[::2], of_h.dtype))
        downs = (of_h.t() @ x).to(factors[0].dtype).split([len(down) for down in factors[::2]])
        return of_x, None, None, *(each for pair in zip(downs, of_ups, strict=True) for each in pair)


def _joined(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All A of layers that see the same input as one matrix [R, in]."""
    return (downs[0] if len(downs) == 1 else torch.cat(tuple(downs))).to(dtype)


def _by_part(
    scales: Sequence[float | None], hidden: Tensor | None, factors: Sequence[Tensor]
) -> list[tuple[Any, Any, Any]]:
    """(scale, its part of the product with A [L, r], B) of each layer; Nones for one without an adapter."""
    if hidden is None:
        return [(None, None, None)] * len(scales)
    each = iter(zip(hidden.split([len(down) for down in factors[::2]], dim=1), factors[1::2], strict=True))
    return [(None, None, None) if scale is None else (scale, *next(each)) for scale in scales]


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x.mul_(scale)

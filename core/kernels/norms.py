"""Norms over the rows of a matrix, forward and backward, with what follows them in the same pass.

Legend: R rows (tokens of the whole batch), D width; a program has one row. Arithmetic is in fp32, and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import Rows, new_rows, quantized
from .shapes import block_of, warps_of

# How often a norm's factors change is no reason to compile anew.
_SIZES = ["per", "stride", "eps"]


@triton.jit
def _statistics(x, mask, eps, D: tl.constexpr, CENTER: tl.constexpr):
    """The row less its mean, and the inverse of its deviation."""
    if CENTER:
        x = tl.where(mask, x - tl.sum(x) / D, 0.0)
    return x, 1.0 / tl.sqrt(tl.sum(x * x) / D + eps)


@triton.jit
def _factors(weight_ptr, at, cols, mask, ADD_ONE: tl.constexpr):
    weight = tl.load(weight_ptr + at + cols, mask=mask, other=0.0).to(tl.float32)
    if ADD_ONE:
        weight = weight + 1.0
    return weight


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows_ptr, scale_ptr, per, stride, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, CENTER: tl.constexpr, ADD_ONE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    dtype = x.dtype
    x, inverse = _statistics(x.to(tl.float32), mask, eps, D, CENTER)
    at = row // per * stride
    y = x * inverse * _factors(weight_ptr, at, cols, mask, ADD_ONE)
    if CENTER:
        y += tl.load(bias_ptr + at + cols, mask=mask, other=0.0).to(tl.float32)
    y = y.to(dtype)
    tl.store(y_ptr + row * D + cols, y, mask=mask)
    if QUANTIZE:
        values, scale = quantized(y.to(tl.float32))
        tl.store(rows_ptr + row * D + cols, values, mask=mask)
        tl.store(scale_ptr + row, scale)


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    x_ptr, weight_ptr, bias_ptr, grad_ptr, beside_ptr, dx_ptr, y_ptr, per, stride, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, CENTER: tl.constexpr, ADD_ONE: tl.constexpr, BESIDE: tl.constexpr,
    AGAIN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    dtype = x.dtype
    grad = tl.load(grad_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    x, inverse = _statistics(x.to(tl.float32), mask, eps, D, CENTER)
    x = x * inverse
    at = row // per * stride
    weight = _factors(weight_ptr, at, cols, mask, ADD_ONE)
    if AGAIN:
        y = x * weight
        if CENTER:
            y += tl.load(bias_ptr + at + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * D + cols, y.to(dtype), mask=mask)
    grad = grad * weight
    dx = grad - x * (tl.sum(grad * x) / D)
    if CENTER:
        dx -= tl.sum(grad) / D
    dx = dx * inverse
    if BESIDE:
        dx += tl.load(beside_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + row * D + cols, dx.to(dtype), mask=mask)


RowLayout = tuple[int, int, float]  # per, stride and eps


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: RowLayout, *, add_one: bool, quantize: bool
) -> tuple[Tensor, Rows | None]:
    """y [..., D], and its rows in e4m3 with `quantize`; x [..., D] contiguous.

    `factors`: every `per` rows share a row of `weight` and `bias`, which lie `stride` apart; eps. Without a bias it is
    RMSNorm, with one LayerNorm. `add_one`: to the weight.
    """
    width = x.shape[-1]
    y = torch.empty_like(x)
    rows, scale = found = new_rows(x) if quantize else (None, None)
    block = block_of(width)
    launch(
        _forward, (x.numel() // width, 1, 1), (x, weight, bias, y, rows, scale, *factors),
        (width, block, bias is not None, add_one, quantize), warps_of(block),
    )  # fmt: skip
    return y, found if quantize else None  # type: ignore[return-value]


def norm_gradient(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    beside: Tensor | None,
    factors: RowLayout,
    *,
    add_one: bool,
    again: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x from that of y, plus `beside`, what else x's gradient has; with `again` y itself, too."""
    width = x.shape[-1]
    dx = torch.empty_like(x)
    y = torch.empty_like(x) if again else None
    block = block_of(width)
    launch(
        _backward, (x.numel() // width, 1, 1), (x, weight, bias, grad, beside, dx, y, *factors),
        (width, block, bias is not None, add_one, beside is not None, again), warps_of(block),
    )  # fmt: skip
    return dx, y

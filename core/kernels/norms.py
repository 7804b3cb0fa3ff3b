"""Norms over the rows of a matrix, forward and backward, with what follows them in the same pass.

Legend: R rows (tokens of the whole batch), D width; a program has one row, and goes through it piece by piece: for its sums,
then for the result. Arithmetic is in fp32, and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import NO_ROWS, Rows, ScaledRows, new_rows, store_rows
from .shapes import piece_of, unit_of

# How often a norm's factors change is no reason to compile anew.
_SIZES = ["per", "stride", "eps"]


@triton.jit
def _counted(mean, x, mask, number: tl.constexpr):
    """Means of `number` numbers in each lane, from those of all but x."""
    return mean + tl.where(mask, x - mean, 0.0) * (1.0 / number)


@triton.jit
def _count(D: tl.constexpr, PIECE: tl.constexpr):
    """How many numbers of a row each lane has."""
    return (D + PIECE - 1 - tl.arange(0, PIECE)) // PIECE


@triton.jit
def _factors(weight_ptr, cols, mask, ADD_ONE: tl.constexpr):
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    if ADD_ONE:
        weight = weight + 1.0
    return weight


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows_ptr, scale_ptr, per, stride, eps,
    D: tl.constexpr, PIECE: tl.constexpr, CENTER: tl.constexpr, ADD_ONE: tl.constexpr, QUANTIZE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = row // per * stride * UNIT
    means = tl.zeros([PIECE], tl.float32)  # lane by lane, as Welford has it: sums of squares would lose digits
    squares = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        if CENTER:
            before = means
            means = _counted(means, x, mask, start // PIECE + 1)
            squares += tl.where(mask, (x - before) * (x - means), 0.0)
        else:
            squares += x * x
    mean = 0.0
    if CENTER:
        count = _count(D, PIECE).to(tl.float32)
        mean = tl.sum(means * count) / D
        squares += (means - mean) * (means - mean) * count
    inverse = 1.0 / tl.sqrt(tl.sum(squares) / D + eps)
    largest = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
        y = (x.to(tl.float32) - mean) * inverse * _factors(weight_ptr + at, cols, mask, ADD_ONE)
        if CENTER:
            y += tl.load(bias_ptr + at + cols, mask=mask, other=0.0).to(tl.float32)
        y = y.to(x.dtype)
        tl.store(y_ptr + row * D + cols, y, mask=mask)
        if QUANTIZE:
            largest = tl.maximum(largest, tl.abs(tl.where(mask, y.to(tl.float32), 0.0)))
    if QUANTIZE:
        store_rows(y_ptr, None, rows_ptr, scale_ptr, row, largest, D, PIECE, False)  # type: ignore[arg-type]


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    x_ptr, weight_ptr, bias_ptr, grad_ptr, beside_ptr, dx_ptr, y_ptr, by_ptr, rows_ptr, scale_ptr, per, stride, eps,
    D: tl.constexpr, PIECE: tl.constexpr, CENTER: tl.constexpr, ADD_ONE: tl.constexpr, BESIDE: tl.constexpr,
    AGAIN: tl.constexpr, QUANTIZE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = row // per * stride * UNIT
    means = tl.zeros([PIECE], tl.float32)  # of x, its squares as in the forward
    squares = tl.zeros([PIECE], tl.float32)
    of_means = tl.zeros([PIECE], tl.float32)  # of the gradient times the weight
    both = tl.zeros([PIECE], tl.float32)  # products of both, less their means
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        grad *= _factors(weight_ptr + at, cols, mask, ADD_ONE)
        if CENTER:
            before = means
            means = _counted(means, x, mask, start // PIECE + 1)
            squares += tl.where(mask, (x - before) * (x - means), 0.0)
            both += tl.where(mask, (grad - of_means) * (x - means), 0.0)
            of_means = _counted(of_means, grad, mask, start // PIECE + 1)
        else:
            squares += x * x
            both += grad * x
    mean = 0.0
    of_mean = 0.0
    if CENTER:
        count = _count(D, PIECE).to(tl.float32)
        mean = tl.sum(means * count) / D
        of_mean = tl.sum(of_means * count) / D
        squares += (means - mean) * (means - mean) * count
        both += (of_means - of_mean) * (means - mean) * count
    inverse = 1.0 / tl.sqrt(tl.sum(squares) / D + eps)
    slope = tl.sum(both) / D * inverse
    largest = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
        dtype = x.dtype
        x = (x.to(tl.float32) - mean) * inverse
        grad = tl.load(grad_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        weight = _factors(weight_ptr + at, cols, mask, ADD_ONE)
        if AGAIN:
            y = x * weight
            if CENTER:
                y += tl.load(bias_ptr + at + cols, mask=mask, other=0.0).to(tl.float32)
            tl.store(y_ptr + row * D + cols, y.to(dtype), mask=mask)
        dx = (grad * weight - of_mean - x * slope) * inverse
        if BESIDE:
            dx += tl.load(beside_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        dx = dx.to(dtype)
        tl.store(dx_ptr + row * D + cols, dx, mask=mask)
        if QUANTIZE:
            dx = dx.to(tl.float32) * tl.load(by_ptr + cols, mask=mask, other=0.0)
            largest = tl.maximum(largest, tl.abs(tl.where(mask, dx, 0.0)))
    if QUANTIZE:
        store_rows(dx_ptr, by_ptr, rows_ptr, scale_ptr, row, largest, D, PIECE, True)  # type: ignore[arg-type]


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
    found = new_rows(x) if quantize else None
    piece, (per, stride, eps) = piece_of("rms" if bias is None else "norm", width), factors
    unit = unit_of(stride)
    launch(
        _forward, (x.numel() // width, 1, 1),
        (x, weight, bias, y, *(found or (None, None)), per, stride // unit, eps),
        (width, piece.size, bias is not None, add_one, quantize, unit), piece.warps,
    )  # fmt: skip
    return y, found


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
    rows: ScaledRows | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x from that of y, plus `beside`, what else x's gradient has; with `again` y itself, too.

    `rows`: those of the gradient, to be filled.
    """
    width = x.shape[-1]
    dx = torch.empty_like(x)
    y = torch.empty_like(x) if again else None
    kernel = "norm_gradient" if bias is not None else "rms_gradient" if rows is None else "rms_gradient, rows"
    piece, (per, stride, eps) = piece_of(kernel, width), factors
    unit = unit_of(stride)
    launch(
        _backward, (x.numel() // width, 1, 1),
        (x, weight, bias, grad, beside, dx, y, *(rows or NO_ROWS), per, stride // unit, eps),
        (width, piece.size, bias is not None, add_one, beside is not None, again, rows is not None, unit), piece.warps,
    )  # fmt: skip
    return dx, y

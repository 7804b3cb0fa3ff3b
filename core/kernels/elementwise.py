"""GELU and the gated residual, forward and backward.

Legend: R rows (tokens of the whole batch), D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import NO_ROWS, Rows, ScaledRows, new_rows, scaled, store_rows
from .shapes import Piece, piece_of, unit_of

_SIZES = ["per", "stride"]
_PIECE = 2048  # numbers of a program, where it need not have a whole row
# tanh(u) = 2 sigmoid(2 u) - 1, so that GELU is x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
_TWICE_ROOT = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)  # constants come second in a product: Triton's interpreter of 3.9 needs it


@triton.jit
def _gelu_of(x):
    return x / (1.0 + tl.exp(x * (x * x * _CUBIC + 1.0) * -_TWICE_ROOT))


@triton.jit
def _gelu(x_ptr, y_ptr, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    tl.store(y_ptr + row * D + cols, _gelu_of(x.to(tl.float32)).to(x.dtype), mask=mask)


@triton.jit
def _gelu_rows(x_ptr, y_ptr, rows_ptr, scale_ptr, D: tl.constexpr, PIECE: tl.constexpr):
    """As `_gelu`, a row by each program."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
        y = _gelu_of(x.to(tl.float32)).to(x.dtype)
        tl.store(y_ptr + row * D + cols, y, mask=mask)
        largest = tl.maximum(largest, tl.abs(y.to(tl.float32)))
    store_rows(y_ptr, None, rows_ptr, scale_ptr, row, largest, D, PIECE, False)  # type: ignore[arg-type]


@triton.jit
def _gelu_gradient(x_ptr, grad_ptr, dx_ptr, y_ptr, D: tl.constexpr, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    grad = tl.load(grad_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    part = 1.0 / (1.0 + tl.exp(x * (x * x * _CUBIC + 1.0) * -_TWICE_ROOT))
    if AGAIN:
        # As the forward has it, to the last bit: a division, not a product with `part`.
        tl.store(y_ptr + row * D + cols, _gelu_of(x).to(dtype), mask=mask)
    inner = x * (x * x * _CUBIC * 3.0 + 1.0) * _TWICE_ROOT
    dx = grad * part * (1.0 + inner * (1.0 - part))
    tl.store(dx_ptr + row * D + cols, dx.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _gated(
    y_ptr, x_ptr, gate_ptr, out_ptr, by_ptr, rows_ptr, scale_ptr, per, stride,
    D: tl.constexpr, PIECE: tl.constexpr, LENGTH: tl.constexpr, ADD: tl.constexpr, QUANTIZE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Of `LENGTH` numbers of a row, which is all of it where it is quantized."""
    row = tl.program_id(0).to(tl.int64)
    gate_ptr += row // per * stride * UNIT
    largest = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, LENGTH, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = tl.program_id(1) * LENGTH + start + tl.arange(0, PIECE)
        mask = cols < D
        y = tl.load(y_ptr + row * D + cols, mask=mask, other=0.0)
        out = y.to(tl.float32) * tl.load(gate_ptr + cols, mask=mask, other=0.0)
        if ADD:
            out += tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        out = out.to(y.dtype)
        tl.store(out_ptr + row * D + cols, out, mask=mask)
        if QUANTIZE:
            largest = tl.maximum(largest, tl.abs(scaled(out, by_ptr, cols, mask, True)))  # type: ignore[arg-type]
    if QUANTIZE:
        store_rows(out_ptr, by_ptr, rows_ptr, scale_ptr, row, largest, D, PIECE, True)  # type: ignore[arg-type]


def gelu(x: Tensor, *, quantize: bool) -> tuple[Tensor, Rows | None]:
    """y like x [..., D] contiguous, and its rows in e4m3 with `quantize`."""
    width = x.shape[-1]
    y, count = torch.empty_like(x), x.numel() // width
    if not quantize:
        launch(_gelu, (count, -(-width // _PIECE), 1), (x, y), (width, _PIECE), 4)
        return y, None
    found, piece = new_rows(x), piece_of("gelu", width)
    launch(_gelu_rows, (count, 1, 1), (x, y, *found), (width, piece.size), piece.warps)
    return y, found


def gelu_gradient(x: Tensor, grad: Tensor, *, again: bool = False, onto: bool = False) -> tuple[Tensor, Tensor | None]:
    """The gradient of x from that of its GELU, both contiguous; with `again` the GELU itself, too.

    `onto`: in the memory of `grad`.
    """
    width = x.shape[-1]
    dx = grad if onto else torch.empty_like(x)
    y = torch.empty_like(x) if again else None
    launch(_gelu_gradient, (x.numel() // width, -(-width // _PIECE), 1), (x, grad, dx, y), (width, _PIECE, again), 4)
    return dx, y


def gated(
    x: Tensor | None,
    y: Tensor,
    gate: Tensor,
    per: int,
    stride: int,
    out: Tensor | None = None,
    rows: ScaledRows | None = None,
) -> Tensor:
    """x + y * gate, or y * gate; x and y [..., D] contiguous; every `per` rows share a row of the gate, `stride` apart.

    `out`: memory for the result, which may be y's. `rows`: those of the result, to be filled.
    """
    out, unit = torch.empty_like(y) if out is None else out, unit_of(stride)
    width, is_whole = y.shape[-1], rows is not None
    count, piece = y.numel() // width, piece_of("gated", width) if is_whole else Piece(_PIECE, 4)
    grid = (count, 1 if is_whole else -(-width // piece.size), 1)
    args = (y, x, gate, out, *(rows or NO_ROWS), per, stride // unit)
    constants = (width, piece.size, width if is_whole else piece.size, x is not None, is_whole, unit)
    launch(_gated, grid, args, constants, piece.warps)
    return out

"""Rows of 8 bits with a scale each: quantized, brought back to 16 bits, and transposed.

Legend: R rows of activations, N K sizes of a weight.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .shapes import piece_of

E4M3 = torch.float8_e4m3fn
_MAX = tl.constexpr(448.0)
_TINY = tl.constexpr(1e-12)  # a row of zeros has a scale, too
_TILE = 64  # of a transposition, bytes
_PIECE = 2048  # numbers of a row that a program brings back to 16 bits
# Formats of 8 bits, by how far their bits are from those of fp32, and 2 to the difference of their exponents' biases.
_FLOATS = {torch.float8_e4m3fn: (20, 2.0**120), torch.float8_e5m2: (21, 2.0**112)}


@triton.jit
def scaled(x, by_ptr, cols, mask, SCALED: tl.constexpr):
    """The numbers of a row in fp32, times `by` where there is one."""
    x = x.to(tl.float32)
    if SCALED:
        x *= tl.load(by_ptr + cols, mask=mask, other=0.0)
    return x


@triton.jit
def store_rows(
    x_ptr, by_ptr, rows_ptr, scale_ptr, row, largest,
    D: tl.constexpr, PIECE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """The row at `x_ptr`, read again, in e4m3, and its scale: the largest becomes 448.

    `largest`: of the row's numbers in each lane. The program itself may have stored the row just now.
    """
    tl.debug_barrier()  # what other threads have stored is there to be read
    largest = tl.maximum(tl.max(largest), _TINY)
    tl.store(scale_ptr + row, largest / _MAX)
    factor = _MAX / largest
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = scaled(tl.load(x_ptr + row * D + cols, mask=mask, other=0.0), by_ptr, cols, mask, SCALED)
        tl.store(rows_ptr + row * D + cols, (x * factor).to(tl.float8e4nv), mask=mask)


@triton.jit
def _quantize(x_ptr, by_ptr, rows_ptr, scale_ptr, D: tl.constexpr, PIECE: tl.constexpr, SCALED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([PIECE], tl.float32)
    for start in tl.static_range(0, D, PIECE):  # type: ignore[attr-defined]  # unrolled
        cols = start + tl.arange(0, PIECE)
        mask = cols < D
        x = scaled(tl.load(x_ptr + row * D + cols, mask=mask, other=0.0), by_ptr, cols, mask, SCALED)
        largest = tl.maximum(largest, tl.abs(x))
    store_rows(x_ptr, by_ptr, rows_ptr, scale_ptr, row, largest, D, PIECE, SCALED)


@triton.jit(do_not_specialize=["stride"])
def _dequantize(
    weight_ptr, scale_ptr, out_ptr, stride,
    K: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < K
    bits = tl.load(weight_ptr + row * K + cols, mask=mask, other=0)
    if SHIFT:  # a float: its bits in the place of an fp32's, which is then wrong by a power of two
        bits = bits.to(tl.int32)
        value = ((bits & 0x7F) << SHIFT).to(tl.float32, bitcast=True) * FACTOR
        value = tl.where((bits & 0x80) != 0, -value, value)
    else:
        value = bits.to(tl.float32)
    value *= tl.load(scale_ptr + row * stride)
    tl.store(out_ptr + row * K + cols, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _transpose(x_ptr, out_ptr, N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    cols = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + rows[:, None] * K + cols[None, :], mask=(rows[:, None] < N) & (cols[None, :] < K), other=0)
    mask = (cols[:, None] < K) & (rows[None, :] < N)
    tl.store(out_ptr + cols[:, None] * N + rows[None, :], tl.trans(x), mask=mask)


class Rows(NamedTuple):
    """Numbers in 8 bits, and what they are to be multiplied by."""

    values: Tensor  # e4m3 [R, K]
    scale: Tensor  # [R, 1] fp32


class ScaledRows(NamedTuple):
    """Those of a result whose columns are multiplied by something first: memory that the kernel which makes it fills, too."""

    by: Tensor  # K numbers, fp32
    values: Tensor
    scale: Tensor

    @property
    def rows(self) -> Rows:
        """Once they are filled."""
        return Rows(self.values, self.scale)


NO_ROWS = (None, None, None)  # to a kernel


def new_rows(x: Tensor) -> Rows:
    """Memory for the rows of x [..., K]."""
    count = x.numel() // x.shape[-1]
    return Rows(x.new_empty((count, x.shape[-1]), dtype=E4M3), x.new_empty((count, 1), dtype=torch.float32))


def quantize_rows(x: Tensor, by: Tensor | None = None) -> Rows:
    """x [R, K] contiguous, times `by` [1, K] fp32 -> its rows; the largest number of one becomes 448."""
    width = x.shape[-1]
    found = new_rows(x)
    piece = piece_of("quantize", width)
    launch(_quantize, (len(found.values), 1, 1), (x, by, *found), (width, piece.size, by is not None), piece.warps)
    return found


def dequantize_rows(weight: Tensor, scale: Tensor, *, out: Tensor) -> Tensor:
    """weight [N, K] fp8 or int8 times scale [N or 1, 1] fp32, taken in fp32 and rounded once to the dtype of `out` [N, K]."""
    shape = out.shape
    shift, factor = _FLOATS.get(weight.dtype, (0, 1.0))
    bits = weight if weight.dtype == torch.int8 else weight.view(torch.uint8)
    args = (bits, scale, out, int(len(scale) > 1))
    launch(_dequantize, (shape[0], -(-shape[1] // _PIECE), 1), args, (shape[1], _PIECE, shift, factor), 4)
    return out


def transposed(weight: Tensor, *, out: Tensor) -> Tensor:
    """weight [N, K] of 8 bits, column by column in the memory of `out` [K, N]."""
    rows, cols = weight.shape
    grid = (-(-rows // _TILE), -(-cols // _TILE), 1)
    launch(_transpose, grid, (weight.view(torch.uint8), out.view(torch.uint8)), (rows, cols, _TILE), 4)
    return out.t()

"""RMSNorm over the full width and the rotation of each head, in one pass; forward and backward.

Legend: R rows (tokens of the whole batch), L tokens of a sample, N heads, K head dim, D = N K; a program has one row, and goes
through it by some HEADS at a time. `tokens` are those of the table: of a sample, or of the whole batch where each sample has
its own. The pairs of neighbouring channels of a head are H = K/2.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import NO_ROWS, ScaledRows, scaled, store_rows
from .shapes import Piece, piece_of

_SIZES = ["tokens", "eps"]


@triton.jit
def _cells(first, N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Where the numbers of a row lie, as [heads, channels] from head `first` on, and which of them there are."""
    heads = first + tl.arange(0, HEADS)[:, None]
    channels = tl.arange(0, 2 * HALF)[None, :]
    return heads * K + channels, (heads < N) & (channels < K)


@triton.jit
def _angles(rope_ptr, row, tokens, HALF: tl.constexpr, K: tl.constexpr):
    """Cosines and sines [1, H] of the row's token."""
    pairs = tl.arange(0, HALF)
    at = rope_ptr + row % tokens * (K // 2) + pairs
    mask = pairs < K // 2
    cos = tl.load(at, mask=mask, other=0.0)
    sin = tl.load(at + tokens.to(tl.int64) * (K // 2), mask=mask, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _turned_back(grad, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The gradient [heads, channels] of what was turned."""
    even, odd = tl.split(tl.reshape(grad.to(tl.float32), (HEADS, HALF, 2)))
    return tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (HEADS, 2 * HALF))


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    x_ptr, weight_ptr, rope_ptr, y_ptr, tokens, eps,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * (N * K)
    y_ptr += row * (N * K)
    squares = tl.zeros([HEADS, 2 * HALF], tl.float32)
    for first in tl.static_range(0, N, HEADS):  # type: ignore[attr-defined]  # unrolled
        cells, mask = _cells(first, N, K, HEADS, HALF)
        x = tl.load(x_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        squares += x * x
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / (N * K) + eps)
    cos, sin = _angles(rope_ptr, row, tokens, HALF, K)
    for first in tl.static_range(0, N, HEADS):  # type: ignore[attr-defined]  # unrolled
        cells, mask = _cells(first, N, K, HEADS, HALF)
        x = tl.load(x_ptr + cells, mask=mask, other=0.0)
        dtype = x.dtype
        x = x.to(tl.float32) * inverse * tl.load(weight_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x.to(dtype).to(tl.float32), (HEADS, HALF, 2)))
        y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, 2 * HALF))
        tl.store(y_ptr + cells, y.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    x_ptr, weight_ptr, rope_ptr, grad_ptr, dx_ptr, by_ptr, rows_ptr, scale_ptr, tokens, eps,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, PIECE: tl.constexpr,
    QUANTIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * (N * K)
    grad_ptr += row * (N * K)
    cos, sin = _angles(rope_ptr, row, tokens, HALF, K)
    squares = tl.zeros([HEADS, 2 * HALF], tl.float32)
    both = tl.zeros([HEADS, 2 * HALF], tl.float32)
    for first in tl.static_range(0, N, HEADS):  # type: ignore[attr-defined]  # unrolled
        cells, mask = _cells(first, N, K, HEADS, HALF)
        x = tl.load(x_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        grad = _turned_back(tl.load(grad_ptr + cells, mask=mask, other=0.0), cos, sin, HEADS, HALF)
        grad *= tl.load(weight_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        squares += x * x
        both += grad * x
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / (N * K) + eps)
    slope = tl.sum(tl.sum(both, axis=1), axis=0) / (N * K) * inverse
    largest = tl.zeros([HEADS, 2 * HALF], tl.float32)
    for first in tl.static_range(0, N, HEADS):  # type: ignore[attr-defined]  # unrolled
        cells, mask = _cells(first, N, K, HEADS, HALF)
        x = tl.load(x_ptr + cells, mask=mask, other=0.0)
        grad = _turned_back(tl.load(grad_ptr + cells, mask=mask, other=0.0), cos, sin, HEADS, HALF)
        grad *= tl.load(weight_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        dx = ((grad - x.to(tl.float32) * inverse * slope) * inverse).to(x.dtype)
        tl.store(dx_ptr + row * (N * K) + cells, dx, mask=mask)
        if QUANTIZE:
            largest = tl.maximum(largest, tl.abs(scaled(dx, by_ptr, cells, mask, True)))  # type: ignore[arg-type]
    if QUANTIZE:
        largest = tl.max(largest, axis=1)
        store_rows(dx_ptr, by_ptr, rows_ptr, scale_ptr, row, largest, N * K, PIECE, True)  # type: ignore[arg-type]


def rms_rope(x: Tensor, weight: Tensor, rope: Tensor, eps: float) -> Tensor:
    """x [B, L, D] contiguous, weight [D], rope [2, L or B L, K/2] contiguous -> [B, L, N, K]."""
    batch, tokens, width = x.shape
    constants, warps = _options(piece_of("rope", width), width, rope.shape[2])
    y = x.new_empty((batch, tokens, constants[0], constants[1]))
    launch(_forward, (batch * tokens, 1, 1), (x, weight, rope, y, rope.shape[1], eps), constants, warps)
    return y


def rms_rope_gradient(
    x: Tensor, weight: Tensor, rope: Tensor, grad: Tensor, eps: float, rows: ScaledRows | None = None
) -> Tensor:
    """The gradient [B, L, D] of x from that of the result, [B, L, N, K] contiguous. `rows`: those of it, to be filled."""
    batch, tokens, width = x.shape
    piece = piece_of("rope_gradient" if rows is None else "rope_gradient, rows", width)
    constants, warps = _options(piece, width, rope.shape[2])
    dx = torch.empty_like(x)
    launch(
        _backward, (batch * tokens, 1, 1),
        (x, weight, rope, grad, dx, *(rows or NO_ROWS), rope.shape[1], eps),
        (*constants, piece.size, rows is not None), warps,
    )  # fmt: skip
    return dx


@lru_cache
def _options(piece: Piece, width: int, half: int) -> tuple[tuple[int, int, int, int], int]:
    """What the kernel is compiled for."""
    padded = triton.next_power_of_2(half)
    return (width // (2 * half), 2 * half, max(1, piece.size // (2 * padded)), padded), piece.warps

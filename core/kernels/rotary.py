"""RMSNorm over the full width and the rotation of each head, in one pass; forward and backward.

Legend: R rows (tokens of the whole batch), L tokens of a sample, N heads, K head dim, D = N K; a program has one row. `tokens`
are those of the table: of a sample, or of the whole batch where each sample has its own. The
pairs of neighbouring channels of a head are H = K/2.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .shapes import warps_of

_SIZES = ["tokens", "eps"]


@triton.jit
def _cells(heads, channels, N: tl.constexpr, K: tl.constexpr):
    """Where the numbers of a row lie, as [heads, channels], and which of them there are."""
    return heads[:, None] * K + channels[None, :], (heads[:, None] < N) & (channels[None, :] < K)


@triton.jit
def _angles(rope_ptr, row, tokens, HALF: tl.constexpr, K: tl.constexpr):
    """Cosines and sines [1, H] of the row's token."""
    pairs = tl.arange(0, HALF)
    at = rope_ptr + row % tokens * (K // 2) + pairs
    mask = pairs < K // 2
    cos = tl.load(at, mask=mask, other=0.0)
    sin = tl.load(at + tokens.to(tl.int64) * (K // 2), mask=mask, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    x_ptr, weight_ptr, rope_ptr, y_ptr, tokens, eps,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cells, mask = _cells(tl.arange(0, HEADS), tl.arange(0, 2 * HALF), N, K)
    x = tl.load(x_ptr + row * (N * K) + cells, mask=mask, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(x * x, axis=1), axis=0) / (N * K) + eps)
    x = x * inverse * tl.load(weight_ptr + cells, mask=mask, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x.to(dtype).to(tl.float32), (HEADS, HALF, 2)))
    cos, sin = _angles(rope_ptr, row, tokens, HALF, K)
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, 2 * HALF))
    tl.store(y_ptr + row * (N * K) + cells, y.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    x_ptr, weight_ptr, rope_ptr, grad_ptr, dx_ptr, tokens, eps,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cells, mask = _cells(tl.arange(0, HEADS), tl.arange(0, 2 * HALF), N, K)
    x = tl.load(x_ptr + row * (N * K) + cells, mask=mask, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(x * x, axis=1), axis=0) / (N * K) + eps)
    x = x * inverse
    grad = tl.load(grad_ptr + row * (N * K) + cells, mask=mask, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(grad, (HEADS, HALF, 2)))
    cos, sin = _angles(rope_ptr, row, tokens, HALF, K)
    grad = tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (HEADS, 2 * HALF))
    grad = grad * tl.load(weight_ptr + cells, mask=mask, other=0.0).to(tl.float32)
    dx = (grad - x * (tl.sum(tl.sum(grad * x, axis=1), axis=0) / (N * K))) * inverse
    tl.store(dx_ptr + row * (N * K) + cells, dx.to(dtype), mask=mask)


def rms_rope(x: Tensor, weight: Tensor, rope: Tensor, eps: float) -> Tensor:
    """x [B, L, D] contiguous, weight [D], rope [2, L or B L, K/2] contiguous -> [B, L, N, K]."""
    batch, tokens, width = x.shape
    constants, warps = _options(width, rope.shape[2])
    y = x.new_empty((batch, tokens, constants[0], constants[1]))
    launch(_forward, (batch * tokens, 1, 1), (x, weight, rope, y, rope.shape[1], eps), constants, warps)
    return y


def rms_rope_gradient(x: Tensor, weight: Tensor, rope: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The gradient [B, L, D] of x from that of the result, [B, L, N, K] contiguous."""
    batch, tokens, width = x.shape
    constants, warps = _options(width, rope.shape[2])
    dx = torch.empty_like(x)
    launch(_backward, (batch * tokens, 1, 1), (x, weight, rope, grad, dx, rope.shape[1], eps), constants, warps)
    return dx


@lru_cache
def _options(width: int, half: int) -> tuple[tuple[int, int, int, int], int]:
    """What the kernel is compiled for."""
    num_heads = width // (2 * half)
    heads, padded = triton.next_power_of_2(num_heads), triton.next_power_of_2(half)
    return (num_heads, 2 * half, heads, padded), warps_of(heads * padded * 2)

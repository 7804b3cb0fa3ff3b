"""GELU and the gated residual, forward and backward.

Legend: R rows (tokens of the whole batch), D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import Rows, new_rows, quantized
from .shapes import block_of, warps_of

_SIZES = ["per", "stride"]
_PIECE = 2048  # numbers of a program, where it need not have a whole row
# tanh(u) = 2 sigmoid(2 u) - 1, so that GELU is x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
_TWICE_ROOT = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)  # constants come second in a product: Triton's interpreter of 3.9 needs it


@triton.jit
def _gelu(
    x_ptr, y_ptr, rows_ptr, scale_ptr, D: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    y = (x / (1.0 + tl.exp(x * (x * x * _CUBIC + 1.0) * -_TWICE_ROOT))).to(dtype)
    tl.store(y_ptr + row * D + cols, y, mask=mask)
    if QUANTIZE:
        values, scale = quantized(y.to(tl.float32))
        tl.store(rows_ptr + row * D + cols, values, mask=mask)
        tl.store(scale_ptr + row, scale)


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
        y = x / (1.0 + tl.exp(x * (x * x * _CUBIC + 1.0) * -_TWICE_ROOT))
        tl.store(y_ptr + row * D + cols, y.to(dtype), mask=mask)
    inner = x * (x * x * _CUBIC * 3.0 + 1.0) * _TWICE_ROOT
    dx = grad * part * (1.0 + inner * (1.0 - part))
    tl.store(dx_ptr + row * D + cols, dx.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _gated(
    y_ptr, x_ptr, gate_ptr, out_ptr, per, stride, D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    y = tl.load(y_ptr + row * D + cols, mask=mask, other=0.0)
    out = y.to(tl.float32) * tl.load(gate_ptr + row // per * stride + cols, mask=mask, other=0.0)
    if ADD:
        out += tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * D + cols, out.to(y.dtype), mask=mask)


def gelu(x: Tensor, *, quantize: bool) -> tuple[Tensor, Rows | None]:
    """y like x [..., D] contiguous, and its rows in e4m3 with `quantize`."""
    width = x.shape[-1]
    y = torch.empty_like(x)
    rows, scale = found = new_rows(x) if quantize else (None, None)
    block = block_of(width) if quantize else _PIECE
    grid = (x.numel() // width, -(-width // block), 1)
    launch(_gelu, grid, (x, y, rows, scale), (width, block, quantize), warps_of(block) if quantize else 4)
    return y, found if quantize else None  # type: ignore[return-value]


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
    x: Tensor | None, y: Tensor, gate: Tensor, per: int, stride: int, out: Tensor | None = None
) -> Tensor:  # fmt: skip
    """x + y * gate, or y * gate; x and y [..., D] contiguous; every `per` rows share a row of the gate, `stride` apart.

    `out`: memory for the result, which may be y's.
    """
    width = y.shape[-1]
    out = torch.empty_like(y) if out is None else out
    grid = (y.numel() // width, -(-width // _PIECE), 1)
    launch(_gated, grid, (y, x, gate, out, per, stride), (width, _PIECE, x is not None), 4)
    return out

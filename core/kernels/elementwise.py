"""GELU and the gated residual, forward and backward.

Legend: R rows (tokens of the whole batch), D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import new_rows, quantized
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
def _gelu_gradient(x_ptr, grad_ptr, dx_ptr, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    x = tl.load(x_ptr + row * D + cols, mask=mask, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    grad = tl.load(grad_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    part = 1.0 / (1.0 + tl.exp(x * (x * x * _CUBIC + 1.0) * -_TWICE_ROOT))
    inner = x * (x * x * _CUBIC * 3.0 + 1.0) * _TWICE_ROOT
    dx = grad * part * (1.0 + inner * (1.0 - part))
    tl.store(dx_ptr + row * D + cols, dx.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _gated(
    x_ptr, y_ptr, gate_ptr, out_ptr, per, stride, D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    y = tl.load(y_ptr + row * D + cols, mask=mask, other=0.0)
    out = y.to(tl.float32) * tl.load(gate_ptr + row // per * stride + cols, mask=mask, other=0.0)
    if ADD:
        out += tl.load(x_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * D + cols, out.to(y.dtype), mask=mask)


def gelu(x: Tensor, *, quantize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y like x [..., D] contiguous, and its rows in e4m3 [R, D] with their scales [R, 1], both empty without `quantize`."""
    width = x.shape[-1]
    y = torch.empty_like(x)
    rows, scale = new_rows(x, quantize=quantize)
    block = block_of(width) if quantize else _PIECE
    grid = (x.numel() // width, triton.cdiv(width, block))
    _gelu[grid](
        x, y, rows, scale, D=width, BLOCK=block, QUANTIZE=quantize, num_warps=warps_of(block) if quantize else 4
    )
    return y, rows, scale


def gelu_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x from that of its GELU, both contiguous."""
    width = x.shape[-1]
    dx = torch.empty_like(x)
    grid = (x.numel() // width, triton.cdiv(width, _PIECE))
    _gelu_gradient[grid](x, grad, dx, D=width, BLOCK=_PIECE, num_warps=4)
    return dx


def gated(x: Tensor | None, y: Tensor, gate: Tensor, per: int, stride: int) -> Tensor:
    """x + y * gate, or y * gate; x and y [..., D] contiguous; every `per` rows share a row of the gate, `stride` apart."""
    width = y.shape[-1]
    out = torch.empty_like(y)
    grid = (y.numel() // width, triton.cdiv(width, _PIECE))
    _gated[grid](x, y, gate, out, per, stride, D=width, BLOCK=_PIECE, ADD=x is not None, num_warps=4)
    return out

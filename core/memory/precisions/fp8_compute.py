"""fp8 storage and fp8 matrix products, on cards whose tensor cores multiply e4m3 (Ada, Hopper, Blackwell).

Activations and gradients are quantized row by row as they come. One copy of the weight serves both directions: with
W = s q, s per output row, dX = g W = (g s) q, so the scale goes into the gradient before that is quantized. The
tensor cores want the second factor column by column, so the backward transposes q, which costs one pass over 8 bits.

Legend: M rows of activations, N out_features, K in_features.
"""

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...torch_compat import scaled_mm
from ..frozen_linear import LayerShape, true_values
from ..precision import PrecisionKind, dtype_name, row_scaled_bytes
from .fp8 import E4M3, Fp8Linear, make_fp8, quantize_rows

# "rows": the kernel takes a scale per row. "tensors": it takes one per tensor, and the rows' are applied to its result;
# torch's builds for Windows, cards without the other kernel, and the CPU.
Kernel = Literal["rows", "tensors"]

MULTIPLE = 16  # of both sizes of the weight: torch_compat.scaled_mm, torch 2.11


class Fp8ComputeLinear(Fp8Linear):
    """`weight` [N, K] e4m3, `scale` [N, 1] fp32."""

    def __init__(
        self, shape: LayerShape, tensors: dict[str, Tensor], bias: nn.Parameter | None, *, kernel: Kernel
    ) -> None:
        super().__init__(shape, tensors, bias)
        self.kernel: Kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] in the bias' dtype -> [..., N]."""
        y = _Fp8Product.apply(x, self.bias, self.kernel, *self.tensors)
        assert isinstance(y, Tensor)
        return y


def make_fp8_compute(
    name: str, weight: Tensor, scale: Tensor | None, *, dtype: torch.dtype, bias: nn.Parameter | None
) -> Fp8Linear:
    """A layer that computes in fp8, or, where its sizes or the device do not allow that, one that stores fp8.

    e5m2 files are quantized anew: two of the kernels take it for the first factor alone. See `MakeLinear`.
    """
    kernel = find_kernel(weight.device)
    if kernel is None or any(size % MULTIPLE for size in weight.shape):
        return make_fp8(name, weight, scale, dtype=dtype, bias=bias)
    if weight.dtype == torch.float8_e5m2:
        weight, scale = true_values(weight, scale), None
    stored = make_fp8(name, weight, scale, dtype=dtype, bias=bias)
    shape = (stored.out_features, stored.in_features)
    row_scale = stored.get_buffer("scale").expand(shape[0], 1).contiguous()
    tensors = {"weight": stored.get_buffer("weight").contiguous(), "scale": row_scale}
    return Fp8ComputeLinear(shape, tensors, bias, kernel=kernel)


@lru_cache
def find_kernel(device: torch.device) -> Kernel | None:
    """Which product of fp8 matrices works on `device`, found by trying; None if there is none."""
    kernels: tuple[Kernel, ...] = ("rows", "tensors")
    values = torch.linspace(-1, 1, 32 * 32, device=device).view(32, 32)
    left, left_scale = quantize_rows(values)
    right, right_scale = quantize_rows(values.flip(0))
    expected = true_values(left, left_scale) @ true_values(right, right_scale).t()
    for kernel in kernels:
        try:
            results = [
                multiply(left, right.t(), left_scale, right_scale.t(), kernel=kernel, fast=fast)
                for fast in (True, False)
            ]
        except (RuntimeError, NotImplementedError):
            continue
        if all(bool((result.float() - expected).abs().max() < 0.02 * expected.abs().max()) for result in results):
            return kernel
    return None


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, kernel: Kernel, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.kernel = kernel
        left, left_scale = quantize_rows(x.flatten(0, -2))
        y = multiply(left, weight.t(), left_scale, scale.t(), bias, kernel=kernel, fast=True)
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, scale = ctx.saved_tensors
        left, left_scale = quantize_rows(grad.flatten(0, -2).float() * scale.t())
        right = weight.t().contiguous().t()  # [N, K], column by column
        # Full accumulation: the sums over N are of gradients, which have no norm in front that bounds them.
        ones = scale.new_ones(1, weight.shape[1])
        grad_x = multiply(left, right, left_scale, ones, kernel=ctx.kernel, fast=False)
        return grad_x.to(grad.dtype).view(*grad.shape[:-1], -1), None, None, None, None


def multiply(
    left: Tensor,
    right: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    bias: Tensor | None = None,
    *,
    kernel: Kernel,
    fast: bool,
) -> Tensor:
    """(left * left_scale) @ (right * right_scale) + bias, in bf16 or fp32.

    left [M, K] e4m3 row by row in memory, right [K, N] e4m3 column by column, scales [M, 1] and [1, N] fp32. `fast`
    leaves sums in the tensor cores' accumulators, with about 14 bits; otherwise they are added up in fp32.
    """
    assert left.dtype == right.dtype == E4M3
    if kernel == "rows":
        if bias is not None:
            bias = bias.to(torch.bfloat16)
        return scaled_mm(left, right, left_scale, right_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=fast)
    one = left_scale.new_ones(())
    y = scaled_mm(left, right, one, one, out_dtype=torch.bfloat16, use_fast_accum=fast) * left_scale * right_scale
    return y if bias is None else y + bias


def _device_warning(device: torch.device, dtype: torch.dtype) -> str:
    if find_kernel(device) is not None:
        return ""
    return (
        f"{device} cannot multiply in fp8, which needs an NVIDIA card of the generation Ada, Hopper or Blackwell: "
        f"the weights are kept in fp8, and the products are taken in {dtype_name(dtype)}, as with 'fp8'."
    )


METHOD = PrecisionKind(
    help="8 bits stored and multiplied, for RTX 40, H100 and newer cards; half of bf16's memory",
    weight_bytes=row_scaled_bytes,
    linears=lambda _: make_fp8_compute,
    multiplies_in_fp8=True,
    refused_on=("mps",),
    lower="nf4",
    device_warning=_device_warning,
)

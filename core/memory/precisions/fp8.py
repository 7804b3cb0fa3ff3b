"""fp8 storage: e4m3 numbers with an fp32 scale per row, computed in 16 bits. Half the bytes of bf16.

Files that hold fp8 already (plain, or scaled as ComfyUI's) keep their numbers and their scale. A finer scale than per
row gains nothing that shows: fp8 is floating point, so only numbers below 2^-15 of the row's largest lose digits.
"""

import torch
from torch import Tensor, nn

from ..frozen_linear import RowScaledLinear, true_values
from ..precision import PrecisionKind, row_scaled_bytes

E4M3 = torch.float8_e4m3fn
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
E4M3_MAX = torch.finfo(E4M3).max  # 448
TINY = 1e-12  # scale of a row of zeros, which must not be 0


class Fp8Linear(RowScaledLinear):
    """`weight` [N, K] fp8, `scale` [N or 1, 1] fp32."""


def make_fp8(
    name: str,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor | None,
    *,
    dtype: torch.dtype,  # noqa: ARG001
    bias: nn.Parameter | None,
) -> Fp8Linear:
    """A layer of what the file stores, if that is fp8; else quantized here. See `MakeLinear`."""
    if weight.dtype in FP8_DTYPES:
        stored, scale = weight, torch.ones(1, 1, device=weight.device) if scale is None else scale
    else:
        stored, scale = quantize_rows(true_values(weight, scale))
    return Fp8Linear((weight.shape[0], weight.shape[1]), {"weight": stored, "scale": scale}, bias)


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> e4m3 [M, K] and scale [M, 1] fp32; the largest number of a row becomes 448.

    The error is at most 2^-4 of each number, or 2^-10 of the scale where that is more (e4m3 has 3 bits of mantissa).
    """
    scale = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=TINY) / E4M3_MAX
    return (values.float() / scale).to(E4M3), scale


METHOD = PrecisionKind(
    help="8 bits stored, computed in 16; half of bf16's memory",
    weight_bytes=row_scaled_bytes,
    linears=lambda _: make_fp8,
    dequantizes=True,
    kernel_weight=E4M3,
    refused_on=("mps",),
    lower="nf4",
)

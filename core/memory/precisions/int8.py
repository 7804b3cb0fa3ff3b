"""int8 storage: whole numbers from -127 to 127 with an fp32 scale per row, computed in 16 bits; for every card.

Its error is the same for large and small numbers of a row, whereas that of fp8 grows with the number: int8 is the more
accurate one unless a few numbers of a row stand out by far.
"""

import torch
from torch import Tensor, nn

from ..frozen_linear import RowScaledLinear, true_values
from ..precision import PrecisionKind, row_scaled_bytes
from .fp8 import TINY

INT8_MAX = 127


class Int8Linear(RowScaledLinear):
    """`weight` [N, K] int8, `scale` [N, 1] fp32."""


def make_int8(
    name: str,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor | None,
    *,
    dtype: torch.dtype,  # noqa: ARG001
    bias: nn.Parameter | None,
) -> Int8Linear:
    """See `MakeLinear`."""
    stored, scale = quantize_int8(true_values(weight, scale))
    return Int8Linear((weight.shape[0], weight.shape[1]), {"weight": stored, "scale": scale}, bias)


def quantize_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] fp32 -> int8 [N, K] and scale [N, 1] fp32; the error is at most half a scale, 1/254 of a row's largest."""
    scale = values.abs().amax(dim=1, keepdim=True).clamp(min=TINY) / INT8_MAX
    return (values / scale).round().to(torch.int8), scale


METHOD = PrecisionKind(
    help="whole numbers of 8 bits, computed with in 16; half of bf16's memory, on every card",
    weight_bytes=row_scaled_bytes,
    linears=lambda _: make_int8,
    dequantizes=True,
    kernel_weight=torch.int8,
    lower="nf4",
)

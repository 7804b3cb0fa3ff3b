"""4 bits with a low-rank branch that undoes part of the error of each layer, found when the model is read.

The branch is the best approximation of the error by a singular value decomposition (QLoRA's quantized base with the
correction of LoftQ, arXiv:2310.08659, and LQER, arXiv:2402.02446, taken once).

Legend: N out_features, K in_features, R rank of the branch.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from ..frozen_linear import MakeLinear, true_values
from ..int4 import GROUP, Int4Linear, grouped_values, pack, quantize_groups, weight_bytes
from ..precision import PrecisionKind

OVERSAMPLING, POWER_ITERATIONS = 8, 2  # Halko, Martinsson, Tropp, arXiv:0909.4061


def int4_svd(rank: int) -> MakeLinear:
    """Layers in 4 bits with a branch of `rank` from the error of each."""
    return partial(make_int4, rank=rank)


def make_int4(
    name: str,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor | None,
    *,
    dtype: torch.dtype,
    bias: nn.Parameter | None,
    rank: int,
) -> Int4Linear | None:
    """See `MakeLinear`. None for a layer whose inputs cannot be packed in pairs."""
    shape = (weight.shape[0], weight.shape[1])
    if shape[1] % 2:
        return None
    values = true_values(weight, scale)
    levels, group_scale, zero = quantize_groups(values, math.gcd(shape[1], GROUP))
    packed = pack(levels)
    error = values - grouped_values(packed, group_scale, zero, shape).float()
    up, down = low_rank(error, min(rank, *shape))
    tensors = {"weight": packed, "scale": group_scale, "zero": zero, "up": up.to(dtype), "down": down.to(dtype)}
    return Int4Linear(shape, tensors, bias)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up [N, R] and down [R, K] fp32, whose product is nearly the best approximation of `matrix` [N, K] of this rank.

    Randomized, by a seed of its own: the same matrix gives the same factors, and the global state does not move.
    """
    width = min(rank + OVERSAMPLING, *matrix.shape)
    draws = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(matrix @ draws.to(matrix.device)).Q  # [N, width]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ basis).Q).Q
    inputs, triangle = torch.linalg.qr(matrix.t() @ basis)  # [K, width], [width, width]
    left, values, right = torch.linalg.svd(triangle.t())
    root = values[:rank].sqrt()  # in both factors, so that 16 bits hold them equally well
    return (basis @ left[:, :rank]) * root, root.unsqueeze(1) * (right[:rank] @ inputs.t())


METHOD = PrecisionKind(
    help="4 bits with a low-rank correction, computed with in 16; a quarter of bf16's memory, on every card",
    weight_bytes=weight_bytes,
    linears=lambda options: int4_svd(options.rank),
    dequantizes=True,
)

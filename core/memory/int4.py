"""4 bits: whole numbers from 0 to 15 in groups along the input, each group with a scale and a level that means zero.

A frozen low-rank branch, added to the dequantized weight, undoes part of the error: see `precisions.int4_svd` and
`precisions.ara` for where it comes from.

Legend: N out_features, K in_features, G groups of a row, R rank of the branch.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from .frozen_linear import FrozenLinear, LayerShape

GROUP = 64
LEVELS = 15
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the group's range; a narrower one trades its ends for smaller steps
EPS = torch.finfo(torch.float32).eps  # smallest scale of a group
LowRank = tuple[Tensor, Tensor]  # down [R, K], up [N, R]; their product is added to the weight as it is


class Int4Linear(FrozenLinear):
    """`weight` [N, K/2] uint8, two numbers a byte; `scale` [N, G] 16 bits, `zero` [N, G] uint8; `up` [N, R], `down` [R, K]."""

    frozen: ClassVar[tuple[str, ...]] = ("weight", "scale", "zero", "up", "down")

    @staticmethod
    def dequantize(dtype: torch.dtype, shape: LayerShape, *tensors: Tensor) -> Tensor:
        """W [N, K]: numbers in the scale's dtype, rounded to `dtype`, plus up @ down."""
        packed, scale, zero, up, down = tensors
        values = grouped_values(packed, scale, zero, shape).to(dtype)
        return torch.addmm(values, up.to(dtype), down.to(dtype))


def quantize_groups(values: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, K] fp32 -> levels [N, K] uint8 below 16, scale [N, G] bf16, zero [N, G] uint8.

    value = (level - zero) * scale. Of a few clipped ranges each group takes the one with the least squared error.
    Without clipping (a ratio of 1 is among them) the error is at most a scale, 1/15 of the group's range.
    """
    grouped = values.unflatten(1, (-1, group))
    low, high = grouped.amin(dim=2).clamp(max=0), grouped.amax(dim=2).clamp(min=0)
    best = _quantize_range(grouped, low, high)
    for ratio in CLIP_RATIOS[1:]:
        other = _quantize_range(grouped, low * ratio, high * ratio)
        better = other[3] < best[3]  # [N, G]
        best = (
            torch.where(better.unsqueeze(2), other[0], best[0]),
            *(torch.where(better, new, old) for new, old in zip(other[1:], best[1:], strict=True)),
        )
    levels, scale, zero, _ = best
    return levels.flatten(1), scale, zero


def _quantize_range(grouped: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[N, G, group] -> levels [N, G, group], scale, zero, and squared error [N, G]."""
    scale = ((high - low) / LEVELS).clamp(min=EPS).to(torch.bfloat16)
    steps = scale.float().unsqueeze(2)
    zero = (-low.unsqueeze(2) / steps).round().clamp(0, LEVELS)
    levels = ((grouped / steps).round() + zero).clamp(0, LEVELS)
    error = ((levels - zero) * steps - grouped).square().sum(dim=2)
    return levels.to(torch.uint8), scale, zero.squeeze(2).to(torch.uint8), error


def grouped_values(packed: Tensor, scale: Tensor, zero: Tensor, shape: LayerShape) -> Tensor:
    """(level - zero) * scale [N, K], computed in the scale's dtype; the difference is exact there."""
    levels = unpack(packed).view(shape[0], scale.shape[1], -1)
    values = (levels.to(scale.dtype) - zero.to(scale.dtype).unsqueeze(2)) * scale.unsqueeze(2)
    return values.view(shape)


def pack(levels: Tensor) -> Tensor:
    """[N, K] uint8 below 16 -> [N, K/2]: the first half of a row in the low bits, the second in the high ones."""
    first, second = levels.chunk(2, dim=1)
    return first | second << 4


def unpack(packed: Tensor) -> Tensor:
    """[N, K/2] -> [N, K] uint8 below 16."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def weight_bytes(shape: LayerShape, element_size: int, rank: int) -> list[int]:
    """Bytes of each tensor of an `Int4Linear`; of a plain weight where the inputs can't be packed in pairs."""
    out, inner = shape
    if inner % 2:
        return [out * inner * element_size]
    groups = out * (inner // math.gcd(inner, GROUP))
    rank = min(rank, out, inner)
    return [out * inner // 2, groups * 2, groups, out * rank * element_size, rank * inner * element_size]

"""NF4 (Dettmers et al., 2023, arXiv:2305.14314), by bitsandbytes: 4 bits per number, blocks of 64 with a scale.

bitsandbytes is imported where it is used: it takes seconds, and most runs do without it.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..frozen_linear import FrozenLinear, LayerShape, MakeLinear, true_values
from ..precision import PrecisionKind

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256  # scales that share one when they are quantized themselves; bitsandbytes' own choice


class Nf4Linear(FrozenLinear):
    """`weight` [N * K / 2, 1] uint8 as bitsandbytes packs it, `absmax` [blocks] fp32."""

    frozen: ClassVar[tuple[str, ...]] = ("weight", "absmax")

    @staticmethod
    def dequantize(dtype: torch.dtype, shape: LayerShape, *tensors: Tensor) -> Tensor:
        """W [N, K] in `dtype`."""
        packed, absmax = tensors
        return torch.ops.bitsandbytes.dequantize_4bit(packed, absmax, BLOCK_SIZE, "nf4", shape, dtype)


class NestedNf4Linear(FrozenLinear):
    """The same with quantized scales: 4.13 bits per number instead of 4.5.

    `absmax` [blocks] uint8 is an index into `nested_code` [256], times `nested_absmax` [blocks / 256], plus `offset` [1].
    """

    frozen: ClassVar[tuple[str, ...]] = ("weight", "absmax", "nested_code", "nested_absmax", "offset")

    @staticmethod
    def dequantize(dtype: torch.dtype, shape: LayerShape, *tensors: Tensor) -> Tensor:
        """W [N, K] in `dtype`."""
        packed, index, code, nested_absmax, offset = tensors
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            index, nested_absmax, code, NESTED_BLOCK_SIZE, torch.float32
        )
        return Nf4Linear.dequantize(dtype, shape, packed, absmax + offset)


def nf4(*, double_quant: bool) -> MakeLinear:
    """Layers in NF4; `double_quant` quantizes the scales as well. Raises ImportError without bitsandbytes."""
    import bitsandbytes  # noqa: F401

    return partial(make_nf4, double_quant=double_quant)


def make_nf4(
    name: str,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor | None,
    *,
    dtype: torch.dtype,  # noqa: ARG001
    bias: nn.Parameter | None,
    double_quant: bool,
) -> FrozenLinear:
    """See `MakeLinear`."""
    from bitsandbytes.functional import quantize_4bit

    shape = (weight.shape[0], weight.shape[1])
    packed, state = quantize_4bit(
        true_values(weight, scale), blocksize=BLOCK_SIZE, compress_statistics=double_quant, quant_type="nf4"
    )
    if not double_quant:
        return Nf4Linear(shape, {"weight": packed, "absmax": state.absmax}, bias)
    nested: Any = state.state2
    tensors = {
        "weight": packed,
        "absmax": state.absmax,
        "nested_code": nested.code,
        "nested_absmax": nested.absmax,
        "offset": torch.as_tensor(state.offset).view(1),
    }
    return NestedNf4Linear(shape, tensors, bias)


def _weight_bytes(shape: LayerShape, element_size: int, rank: int) -> list[int]:
    """Of the tensors of `NestedNf4Linear`."""
    del element_size, rank
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK_SIZE)
    return [-(-count // 2), blocks, 256 * 4, -(-blocks // NESTED_BLOCK_SIZE) * 4, 4]


METHOD = PrecisionKind(
    help="4 bits by bitsandbytes, computed with in 16; a quarter of bf16's memory",
    weight_bytes=_weight_bytes,
    linears=lambda options: nf4(double_quant=options.double_quant),
    dequantizes=True,
    packages=("bitsandbytes",),
    refused_on=("mps",),
)

"""4 bits with AI-Toolkit's published accuracy recovery adapters (huggingface.co/ostris/accuracy_recovery_adapters).

An adapter is a frozen LoRA that was trained to undo the error of one particular quantizer, so that one is repeated here
to the bit: the "uint4" of torchao 0.10 in groups of 64, every operation rounded to bf16. The trained LoRA is used
without the adapter, on the model in full precision.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..frozen_linear import MakeLinear, true_values
from ..int4 import EPS, GROUP, LEVELS, Int4Linear, LowRank, pack, weight_bytes
from ..precision import PrecisionKind


def accuracy_recovery(adapter: Mapping[str, LowRank]) -> MakeLinear:
    """Layers in 4 bits with the adapter's factors, by the name of the layer; others stay plain, as in AI-Toolkit.

    ConfigError if there is no adapter.
    """
    if not adapter:
        raise ConfigError(
            "The precision 'ara' needs an accuracy recovery adapter: give its file (from "
            "huggingface.co/ostris/accuracy_recovery_adapters), or choose 'int4_svd', which needs none."
        )
    return partial(make_ara, adapter=adapter)


def make_ara(
    name: str,
    weight: Tensor,
    scale: Tensor | None,
    *,
    dtype: torch.dtype,
    bias: nn.Parameter | None,
    adapter: Mapping[str, LowRank],
) -> Int4Linear | None:
    """See `MakeLinear`."""
    shape = (weight.shape[0], weight.shape[1])
    if name not in adapter or shape[1] % GROUP:
        return None
    levels, group_scale, zero = quantize_uint4(true_values(weight, scale).to(torch.bfloat16))
    down, up = (factor.to(weight.device, dtype) for factor in adapter[name])
    tensors = {"weight": pack(levels), "scale": group_scale, "zero": zero, "up": up, "down": down}
    return Int4Linear(shape, tensors, bias)


def quantize_uint4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, K] bf16 -> levels [N, K] uint8 below 16, scale [N, G] bf16, zero [N, G] uint8.

    torchao 0.10 (choose_qparams_affine, quantize_affine), whose order of operations counts: the weight is multiplied
    by the rounded reciprocal of the scale, not divided by it.
    """
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(dim=2).clamp(max=0), grouped.amax(dim=2).clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=EPS)
    zero = (0 - (low / scale).round()).clamp(0, LEVELS)
    levels = ((grouped * (1 / scale).unsqueeze(2)).round() + zero.unsqueeze(2)).clamp(0, LEVELS)
    return levels.flatten(1).to(torch.uint8), scale, zero.to(torch.uint8)


def _file_warning(weights: str) -> str:
    if weights in ("bf16", "fp16", "fp32", "") or weights[:1] == "q":
        return ""
    return (
        f"Accuracy recovery adapters were made for the bf16 model, but the model file stores {weights}: use the "
        "fp16 or bf16 file of the same model for the best result."
    )


METHOD = PrecisionKind(
    help="4 bits with a correction that was trained, for which it needs an accuracy recovery adapter's file",
    weight_bytes=weight_bytes,
    linears=lambda options: accuracy_recovery(options.adapter),
    dequantizes=True,
    needs_adapter=True,
    file_warning=_file_warning,
)

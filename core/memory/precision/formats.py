"""Which forms the frozen base can have on which device, and what stands in the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ...errors import ConfigError
from ...packages import unusable
from ...settings.precision import PRECISIONS, Precision
from .ara import LowRank, accuracy_recovery
from .base import MakeLinear
from .fp8 import make_fp8
from .fp8_compute import find_kernel, make_fp8_compute
from .int4 import int4_svd
from .int8 import make_int8
from .nf4 import nf4

_PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_FP16_CAPABILITY = (7, 0)  # Volta; older cards compute fp16 at a fraction of fp32's speed


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """What single formats leave open."""

    rank: int = 32  # int4_svd: of the branch that corrects each layer
    double_quant: bool = True  # nf4: quantize the scales too, 4.13 bits per number instead of 4.5
    adapter: Mapping[str, LowRank] = field(default_factory=dict)  # ara: (down, up) by the name of the layer

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"The rank of the correction in 'int4_svd' must be at least 1, got {self.rank}.")


class Resolved(NamedTuple):
    """How to load the base."""

    dtype: torch.dtype  # of the arithmetic
    linear: MakeLinear | None  # makes the block linears; None: plain ones in `dtype`
    warnings: tuple[str, ...]  # sentences for the user


def resolve(
    precision: Precision, device: torch.device, *, weights: str = "", options: FormatOptions | None = None
) -> Resolved:
    """What `precision` means on `device` for a file that stores `weights` (the checkpoint's own word, such as "fp16").

    "auto" is bf16 where the card has it, else fp16, else fp32. Other formats compute in the same dtype. Raises
    ConfigError for a precision that is not known, or that lacks its package, its card, or its adapter.
    """
    options = options or FormatOptions()
    if precision not in PRECISIONS:
        raise ConfigError(f"The precision '{precision}' is not known: choose from {', '.join(PRECISIONS)}.")
    if options.adapter and precision != "ara":
        raise ConfigError(
            f"An accuracy recovery adapter is given, but the precision is '{precision}': choose 'ara', or leave the "
            "adapter out."
        )
    warnings = _file_warnings(precision, weights)
    if precision in _PLAIN:
        return Resolved(_PLAIN[precision], None, warnings)
    dtype = native_dtype(device)
    if precision == "auto":
        return Resolved(dtype, None, warnings)
    _check_device(precision, device)
    if precision == "fp8_compute" and find_kernel(device) is None:
        warnings += (
            f"{device} cannot multiply in fp8, which needs an NVIDIA card of the generation Ada, Hopper or Blackwell: "
            f"the weights are kept in fp8, and the products are taken in {_name(dtype)}, as with 'fp8'.",
        )
    return Resolved(dtype, _maker(precision, options), warnings)


def native_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic that suits the device: fp32 on a CPU, else bf16, or what an older card does fast."""
    if device.type == "cpu":
        return torch.float32
    if device.type != "cuda":
        return torch.bfloat16
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
    is_fast = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _MIN_FP16_CAPABILITY
    return torch.float16 if is_fast else torch.float32


def _maker(precision: Precision, options: FormatOptions) -> MakeLinear:
    if precision == "nf4":
        try:
            return nf4(double_quant=options.double_quant)
        except Exception as error:  # one that does not fit its torch raises anything
            raise unusable("bitsandbytes", error) from error
    if precision == "ara" and not options.adapter:
        raise ConfigError(
            "The precision 'ara' needs an accuracy recovery adapter: give its file (from "
            "huggingface.co/ostris/accuracy_recovery_adapters), or choose 'int4_svd', which needs none."
        )
    makers: dict[str, MakeLinear] = {"fp8": make_fp8, "fp8_compute": make_fp8_compute, "int8": make_int8}
    if precision in makers:
        return makers[precision]
    return accuracy_recovery(options.adapter) if precision == "ara" else int4_svd(options.rank)


def _check_device(precision: Precision, device: torch.device) -> None:
    if device.type == "mps" and precision in ("fp8", "fp8_compute", "nf4"):
        raise ConfigError(f"The precision '{precision}' cannot be used on Apple's GPUs: choose 'int8' or 'int4_svd'.")


def _file_warnings(precision: Precision, weights: str) -> tuple[str, ...]:
    """Where the file decides, not the setting, or where both lose digits."""
    is_gguf = weights[:1] == "q"
    if is_gguf and precision not in ("auto", *_PLAIN):
        return (
            f"The model file is a GGUF file ({weights.upper()}), whose layers stay as they are: the precision "
            f"'{precision}' has no effect on them.",
        )
    if precision == "ara" and weights not in ("bf16", "fp16", "fp32", ""):
        return (
            f"Accuracy recovery adapters were made for the bf16 model, but the model file stores {weights}: use the "
            "fp16 or bf16 file of the same model for the best result.",
        )
    return ()


def _name(dtype: torch.dtype) -> str:
    return next(name for name, other in _PLAIN.items() if other == dtype)

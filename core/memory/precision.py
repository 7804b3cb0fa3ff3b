"""Forms in which the frozen base can be held while it is trained on; each is a file in `precisions`.

"auto" is no form: it chooses one of the plain ones by what the device computes fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch

from ..errors import ConfigError
from ..methods import Methods
from ..packages import unusable
from ..paths import shown
from ..torch_compat import has_bf16
from .frozen_linear import LayerShape, MakeLinear
from .int4 import LowRank

AUTO = "auto"
_MIN_FP16_CAPABILITY = (7, 0)  # Volta; older cards compute fp16 at a fraction of fp32's speed
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# (shape, bytes of a number in the arithmetic, rank of a correction) -> bytes of each tensor that stands for a weight
WeightBytes = Callable[[LayerShape, int, int], list[int]]


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """What single precisions leave open."""

    rank: int = 32  # int4_svd: of the branch that corrects each layer
    double_quant: bool = True  # nf4: quantize the scales too, 4.13 bits per number instead of 4.5
    adapter: Mapping[str, LowRank] = field(default_factory=dict)  # ara: (down, up) by the name of the layer

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"The rank of the correction in 'int4_svd' must be at least 1, got {self.rank}.")


def _silent(*_: object) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class PrecisionKind:
    """One form of the base, with all that loading, kernels and planning need to know of it."""

    help: str
    weight_bytes: WeightBytes
    dtype: torch.dtype | None = None  # of the arithmetic; None: what suits the device
    linears: Callable[[FormatOptions], MakeLinear] | None = None  # makes the block's linear layers; None: nn.Linear
    dequantizes: bool = False  # weights are brought into the arithmetic's dtype before each product
    multiplies_in_fp8: bool = False  # activations and gradients are quantized, and the products taken in fp8
    kernel_weight: torch.dtype | None = None  # 8-bit weights that one kernel dequantizes, a layer at a time
    packages: tuple[str, ...] = ()  # as pip knows them
    refused_on: tuple[str, ...] = ()  # types of devices
    needs_adapter: bool = False  # a file with an accuracy recovery adapter
    lower: str = ""  # the precision to advise where this one takes too much memory
    device_warning: Callable[[torch.device, torch.dtype], str] = _silent  # a sentence, or ""
    file_warning: Callable[[str], str] = _silent  # the same, for the dtype that the model file stores


PRECISION_KINDS = Methods(PrecisionKind, "precision", "memory.precisions")


@lru_cache
def precision_kind(name: str) -> PrecisionKind:
    """The precision called `name`. ConfigError for one that is not known, and for "auto", which must be decided before."""
    return PRECISION_KINDS.get(name)


def known_precision(name: str) -> PrecisionKind | None:
    """The same, None for "auto". ConfigError, with all choices, for a name that is not known."""
    if name == AUTO:
        return None
    names = PRECISION_KINDS.names
    if name not in names:
        raise ConfigError(f"The precision '{shown(name)}' is not known: choose one of {', '.join((AUTO, *names))}.")
    return precision_kind(name)


def needed_by_precision(name: str) -> tuple[str, ...]:
    """Packages, as pip knows them. ConfigError for a precision that is not known."""
    kind = known_precision(name)
    return kind.packages if kind else ()


def needs_adapter(name: str) -> bool:
    """Whether it goes with an accuracy recovery adapter. ConfigError for a precision that is not known."""
    kind = known_precision(name)
    return kind is not None and kind.needs_adapter


class Resolved(NamedTuple):
    """How to load the base."""

    dtype: torch.dtype  # of the arithmetic
    linear: MakeLinear | None  # makes the block linears; None: plain ones in `dtype`
    warnings: tuple[str, ...]  # sentences for the user


def resolve(
    precision: str, device: torch.device, *, weights: str = "", options: FormatOptions | None = None
) -> Resolved:
    """What `precision` means on `device` for a file that stores `weights` (the checkpoint's own word, such as "fp16").

    "auto" is bf16 where the card has it, else fp16, else fp32. Quantized weights are computed with in the same dtype.
    Raises ConfigError for a precision that is not known, or that lacks its package, its card, or its adapter.
    """
    options = options or FormatOptions()
    kind = known_precision(precision)
    if options.adapter and not (kind and kind.needs_adapter):
        raise ConfigError(
            f"An accuracy recovery adapter is given, but the precision is '{precision}': choose 'ara', or leave the "
            "adapter out."
        )
    if kind is None:
        return Resolved(native_dtype(device), None, ())
    if kind.linears is None:
        return Resolved(kind.dtype or native_dtype(device), None, ())
    if device.type in kind.refused_on:
        raise ConfigError(f"The precision '{precision}' cannot be used on Apple's GPUs: choose 'int8' or 'int4_svd'.")
    dtype = kind.dtype or native_dtype(device)
    linear = _linears(kind, kind.linears, options)
    warnings = (_gguf_warning(precision, weights), kind.file_warning(weights), kind.device_warning(device, dtype))
    return Resolved(dtype, linear, tuple(filter(None, warnings)))


def native_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic that suits the device: fp32 on a CPU, else bf16, or what an older card does fast."""
    if device.type == "cpu":
        return torch.float32
    if device.type != "cuda" or has_bf16(device):
        return torch.bfloat16
    is_fast = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _MIN_FP16_CAPABILITY
    return torch.float16 if is_fast else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The plain precision that computes in it: "bf16"."""
    return _DTYPE_NAMES[dtype]


def plain_bytes(shape: LayerShape, element_size: int, rank: int) -> list[int]:
    """`WeightBytes` of a weight that is kept in the arithmetic's dtype."""
    del rank
    return [shape[0] * shape[1] * element_size]


def row_scaled_bytes(shape: LayerShape, element_size: int, rank: int) -> list[int]:
    """`WeightBytes` of 8 bits for a number, and a scale in fp32 for a row."""
    del element_size, rank
    return [shape[0] * shape[1], shape[0] * 4]


def _linears(kind: PrecisionKind, make: Callable[[FormatOptions], MakeLinear], options: FormatOptions) -> MakeLinear:
    try:
        return make(options)
    except ConfigError:
        raise
    except Exception as error:  # a package that does not fit its torch raises anything
        if not kind.packages:
            raise
        raise unusable(kind.packages[0], error) from error


def _gguf_warning(precision: str, weights: str) -> str:
    """Where the file decides, and not the setting."""
    if weights[:1] != "q":
        return ""
    return (
        f"The model file is a GGUF file ({weights.upper()}), whose layers stay as they are: the precision "
        f"'{precision}' has no effect on them."
    )

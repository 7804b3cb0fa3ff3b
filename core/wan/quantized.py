"""The ways in which Wan files store weights in 8 bits, and how to get the numbers back.

ComfyUI 0.33 (comfy/utils.py convert_old_quants, comfy/ops.py _load_quantized_module): legacy files have a `scaled_fp8`
marker and `<layer>.scale_weight` (+ `.scale_input`); newer ones `<layer>.weight_scale` (+ `.input_scale`) and either a
`<layer>.comfy_quant` tensor with JSON bytes or the header metadata `_quantization_metadata`. The weight is the stored
value times the scale. Input scales belong to fp8 matrix products on activations, which training does not use.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ModelFileError
from .header import TensorEntry
from .keys import find_prefix, to_official
from .limits import parse_json, shown

Weights = Literal[
    "fp32", "fp16", "bf16", "fp8", "fp8_scaled", "fp8_scaled_legacy",
    "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k",
]  # fmt: skip

LEGACY_MARKER = "scaled_fp8"
LEGACY_SCALE = ".scale_weight"
SCALE = ".weight_scale"
LAYER_FORMAT = ".comfy_quant"
EXTRAS = (LEGACY_SCALE, SCALE, LAYER_FORMAT, ".scale_input", ".input_scale")
FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
FORMAT_METADATA = "_quantization_metadata"

_DTYPE_WEIGHTS: dict[str, Weights] = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "Q8_0": "q8_0", "Q6_K": "q6_k", "Q5_K": "q5_k", "Q5_1": "q5_1", "Q5_0": "q5_0",
    "Q4_K": "q4_k", "Q4_1": "q4_1", "Q4_0": "q4_0", "Q3_K": "q3_k", "Q2_K": "q2_k",
}  # fmt: skip
_MAX_FORMAT_BYTES = 10_000  # of a layer's description
_SCALE_DTYPES = ("F32", "F16", "BF16")


def is_extra(name: str) -> bool:
    """Whether a tensor only describes how others are stored."""
    return name == LEGACY_MARKER or name.endswith(EXTRAS)


def scale_name(name: str, names: Mapping[str, Any]) -> str | None:
    """The name of the scale that belongs to the weight `name`, if the file has one."""
    layer = name.removesuffix(".weight")
    candidates = () if layer == name else (layer + SCALE, layer + LEGACY_SCALE)
    return next((candidate for candidate in candidates if candidate in names), None)


def stored_weights(path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> Weights:
    """How the bulk of the weights is stored. Raises ModelFileError if it is a way that cannot be read back."""
    params_by_dtype: Counter[str] = Counter()
    for name, entry in entries.items():
        if is_extra(name):
            continue
        if entry.dtype not in _DTYPE_WEIGHTS:
            raise _unreadable(path, f"'{name}' is stored as {entry.dtype}")
        params_by_dtype[entry.dtype] += entry.num_params
        scale = entries.get(scale_name(name, entries) or "")
        if scale is not None and not _is_plain_scale(scale, entry):
            raise _unreadable(path, f"'{name}' has block-wise scales of shape {list(scale.shape)} ({scale.dtype})")
    layers = _layer_formats(path, metadata) | {
        name.removesuffix(LAYER_FORMAT): "" for name in entries if name.endswith(LAYER_FORMAT)
    }
    for layer in layers:
        if layer + ".weight" in entries and layer + SCALE not in entries:
            raise ModelFileError(
                f"The model file '{path}' is incomplete: it lacks the scale '{layer}{SCALE}'; download it again."
            )
    if not params_by_dtype:
        raise ModelFileError(f"The model file '{path}' holds no weights; download it again.")
    weights = _DTYPE_WEIGHTS[params_by_dtype.most_common(1)[0][0]]
    if any(name.endswith(LEGACY_SCALE) for name in entries):
        return "fp8_scaled_legacy"
    return "fp8_scaled" if any(name.endswith(SCALE) for name in entries) else weights


def check_layer_format(path: Path, name: str, stored: Tensor) -> None:
    """Raises ModelFileError unless the `comfy_quant` tensor (JSON bytes) names an fp8 format."""
    try:
        if stored.numel() > _MAX_FORMAT_BYTES:
            raise ValueError("it is too long")
        found = parse_json(bytes(stored.flatten().tolist()))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"The model file '{path}' is damaged: '{name}' does not name a quantization format; download it again."
        ) from error
    if found not in FP8_FORMATS:
        raise _unreadable(path, f"'{name}' says {shown(found)}")


def convert(stored: Tensor, scale: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight in `dtype` on `device`.

    The product with the scale is taken in fp32 and rounded once. In bf16 ComfyUI rounds the scale first, which shifts
    a whole layer by up to 0.4 %; its fp8 matrix products do not.
    """
    if device.type == "cuda":
        stored = stored.to(device)  # the GPU converts faster, and 8 bits travel faster than 16
    if scale is None:
        return stored.to(dtype).to(device)
    return (stored.float() * column(scale, stored.device)).view_as(stored).to(dtype).to(device)


def column(scale: Tensor, device: torch.device) -> Tensor:
    """A scale per tensor or per row, as [1, 1] or [out, 1] fp32 on `device`."""
    return scale.to(device, torch.float32).view(-1, 1)


def _layer_formats(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """Layer name to format, from the header metadata; {} if it has none."""
    if FORMAT_METADATA not in metadata:
        return {}
    try:
        layers = parse_json(metadata[FORMAT_METADATA])["layers"]
        formats = {
            to_official(name.removeprefix(find_prefix([name]))): layer["format"] for name, layer in layers.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"The metadata field '{FORMAT_METADATA}' in the header of '{path}' is damaged; download the file again."
        ) from error
    for name, found in formats.items():
        if found not in FP8_FORMATS:
            raise _unreadable(path, f"'{shown(name)}' says {shown(found)}")
    return formats


def _is_plain_scale(scale: TensorEntry, weight: TensorEntry) -> bool:
    """One number per tensor, or one per row."""
    return scale.dtype in _SCALE_DTYPES and (scale.num_params == 1 or scale.shape == (*weight.shape[:1], 1))


def _unreadable(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"The model file '{path}' is quantized in a way that cannot be trained ({reason}); use the fp16, bf16, fp8 or "
        "fp8_scaled file of the same model."
    )

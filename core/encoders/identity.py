"""Digests of encoders: equal for the same weights at the same precision, whichever file or program holds them.

They are part of every cache key, so what was encoded in the graph is found again without ComfyUI, and the reverse.
Weights go by their official names (VAE) or by transformers' (CLIP vision; text encoder, with ComfyUI's
`<layer>.weight_scale`).
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..wan.quantized import is_extra, scale_name

_SAMPLES = 1024  # at least so many values of every tensor that has them
_FINAL_NORM = "encoder.final_layer_norm.weight"


def weights_identity(state: Mapping[str, Tensor], dtype: torch.dtype, extra: str = "") -> str:
    """Digest of a model that computes in `dtype`: names, shapes, and evenly spaced values of every tensor.

    Weights that are stored in a wider dtype count as rounded to `dtype`.
    """
    values = {name: _samples(tensor, dtype) for name, tensor in state.items()}
    return _digest(f"{extra} {dtype}", state, values)


def video_identity(state: Mapping[str, Tensor], latent_format: str, dtype: torch.dtype) -> str:
    """Digest of a Wan VAE that computes in `dtype`."""
    return weights_identity(state, dtype, latent_format)


def vision_identity(state: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Digest of a CLIP vision model whose weights are held in `dtype`, with its last layer and, if any, projection."""
    return weights_identity(state, dtype, "clip vision")


def text_identity(state: Mapping[str, Tensor], tokenizer: bytes, dtype: torch.dtype, changes: str = "") -> str:
    """Digest of a umT5 encoder that computes in `dtype`.

    `tokenizer` is the serialized sentencepiece model; `changes` names what was done to the encoder after loading. fp8
    weights with a scale count as their product.
    """
    norm_dtype = state[_FINAL_NORM].dtype
    values = {}
    for name, tensor in state.items():
        if is_extra(name):
            continue
        scale = state.get(scale_name(name, state) or "")
        values[name] = _samples(tensor, norm_dtype) if scale is None else _scaled_samples(tensor, scale)
    return _digest(f"umt5 {hashlib.sha256(tokenizer).hexdigest()} {dtype} {changes}", state, values)


def as_stored(tensor: Tensor, norm_dtype: torch.dtype) -> Tensor:
    """A weight without a scale as ComfyUI holds it: in the dtype of the final norm, unless that is wider."""
    return tensor.to(norm_dtype) if norm_dtype.itemsize <= tensor.dtype.itemsize else tensor


def _positions(tensor: Tensor) -> slice:
    step = max(1, tensor.numel() // _SAMPLES)
    return slice(0, 2 * _SAMPLES * step, step)


def _samples(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Evenly spaced values, as `dtype` holds them, float64 on the CPU."""
    return as_stored(tensor.detach().reshape(-1)[_positions(tensor)].cpu(), dtype).double()


def _scaled_samples(tensor: Tensor, scale: Tensor) -> Tensor:
    """Evenly spaced values times their scale (one number, or one for each row), float64 on the CPU."""
    values = tensor.detach().reshape(-1)[_positions(tensor)].cpu().double()
    scale = scale.detach().reshape(-1).cpu().double()
    if scale.numel() > 1:
        scale = scale.repeat_interleave(tensor.numel() // scale.numel())[_positions(tensor)]
    return values * scale


def _digest(extra: str, state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256(extra.encode())
    for name in sorted(values):
        hasher.update(f"{name}{tuple(state[name].shape)}".encode())
        hasher.update(values[name].numpy().tobytes())
    return hasher.hexdigest()[:32]

"""What a model, a prompt or given frames are, as a digest: for what is made of them once and found again on the disk."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch

_SAMPLED = 4096  # numbers of a tensor that is larger than it should be read whole
# Parameters by whose numbers models of one architecture differ, and that LoRAs leave alone: what a LoRA has changed may
# still lie in the model's memory while it is looked at.
_TELLING = ("modulation", "norm_k.weight", "norm_q.weight", "time_embedding.0.bias")
_DEEPEST = 8


def digest_of(*values: Any, whole: int = 2**24) -> str:
    """Of numbers, texts, tensors, and whatever holds them. Of a function it knows the name alone.

    `whole`: the most numbers of a tensor that is read whole; of a larger one it knows 4096.
    """
    found = _Digest(whole)
    found.add(values)
    return found.hash.hexdigest()


def model_digest(model: Any) -> str:
    """Of a model as nodes hand it on: its weights by samples, what is patched onto them, and its options. "" for None."""
    if model is None:
        return ""
    parameters = sorted(model.model.diffusion_model.named_parameters())
    shapes = [(name, str(parameter.dtype), tuple(parameter.shape)) for name, parameter in parameters]
    values = [parameter.detach() for name, parameter in parameters if name.endswith(_TELLING)]
    options = (model.model_options, sorted(model.object_patches))
    return digest_of(shapes, values, model.patches, options, whole=2**16)


class _Digest:
    def __init__(self, whole: int):
        self.hash = hashlib.sha256()
        self._whole = whole
        self._within: set[int] = set()  # what is being read: things may hold each other

    def add(self, value: Any) -> None:
        self.hash.update(f"{type(value).__name__}:".encode())
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, (str, int, float, bool, type(None), bytes)):
            self.hash.update(repr(value).encode())
        elif id(value) not in self._within and len(self._within) < _DEEPEST:
            self._within.add(id(value))
            self._add_inside(value)
            self._within.discard(id(value))

    def _add_tensor(self, value: torch.Tensor) -> None:
        flat = value.detach().flatten()
        step = 1 if flat.numel() <= self._whole else math.ceil(flat.numel() / _SAMPLED)
        self.hash.update(f"{value.dtype}{tuple(value.shape)}".encode())
        self.hash.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())

    def _add_inside(self, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self.hash.update(f"{key}=".encode())
                self.add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.add(item)
        elif hasattr(value, "__qualname__"):
            self.hash.update(value.__qualname__.encode())
        elif hasattr(value, "__dict__"):
            self.add({name: item for name, item in vars(value).items() if not name.startswith("_")})

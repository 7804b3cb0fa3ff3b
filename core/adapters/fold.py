"""A LoRA added to the weights of a checkpoint for good: a model file that needs no LoRA loader.

The weights are read and written one after another. In "fp8_scaled" the layers of the blocks are stored as ComfyUI 0.33 reads
them (comfy/ops.py): float8_e4m3fn, a `weight_scale` for each, and `comfy_quant`, the name of the format in JSON.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from ..safetensors_file import write_one_by_one
from ..wan.checkpoint import CheckpointInfo, hints_expert
from ..wan.gguf import QUANTS
from ..wan.header import DTYPES
from ..wan.quantized import FORMAT_METADATA, LAYER_FORMAT, SCALE
from ..wan.stored import StoredWeights
from .formats import LoraModule
from .merge import check_expert, check_strengths
from .merged_base import MergedBase
from .other_files import OtherModule, read_adapter
from .transfer import model_shapes, transfer_report

FOLD_PRECISIONS = {
    "same": "as the layers of the model's file are",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8_scaled": "fp8 with a scale for each layer, as ComfyUI reads it",
}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_scaled": torch.float8_e4m3fn}
_LINEAR = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)|ffn\.\d)\.weight")
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
_FORMAT = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)


@dataclass(frozen=True)
class Folded:
    """How many layers were changed, and what there is to say."""

    num_changed: int
    notes: tuple[str, ...]


@dataclass
class _Writer:
    weights: StoredWeights
    added: Sequence[MergedBase]
    precision: str

    def dtype(self, name: str) -> torch.dtype:
        """In which a weight is written. What is no layer of the blocks stays as it is: it is small, and needs its bits."""
        entry = self.weights.entries[name]
        stored = torch.float16 if entry.dtype in QUANTS else DTYPES[entry.dtype]
        if not _LINEAR.fullmatch(name):
            return torch.bfloat16 if stored.itemsize == 1 else stored
        if self.precision == "same":
            return stored
        return _DTYPES[self.precision]

    def is_scaled(self, name: str) -> bool:
        """Whether it gets a scale. In a file of fp8 every layer does: without one small changes would be rounded away."""
        return _LINEAR.fullmatch(name) is not None and self.dtype(name).itemsize == 1

    def outline(self) -> dict[str, Tensor]:
        """Names, dtypes and shapes."""
        found: dict[str, Tensor] = {}
        for name in self.weights.names:
            dtype = torch.float8_e4m3fn if self.is_scaled(name) else self.dtype(name)
            found[name] = torch.empty(self.weights.entries[name].shape, dtype=dtype, device="meta")
            if self.is_scaled(name):
                layer = name.removesuffix(".weight")
                found[layer + SCALE] = torch.empty((), dtype=torch.float32, device="meta")
                found[layer + LAYER_FORMAT] = _FORMAT.to("meta")
        return found

    def make(self, name: str) -> Tensor:
        """One tensor; that of a scale is made with its weight, before or after it."""
        if name.endswith(LAYER_FORMAT):
            return _FORMAT
        if name.endswith(SCALE):
            return self._scale(self.changed(name.removesuffix(SCALE) + ".weight"))
        if self.is_scaled(name):
            weight = self.changed(name)
            return (weight / self._scale(weight)).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
        is_kept = self.weights.entries[name].dtype not in QUANTS and not self._adds(name)
        if is_kept and DTYPES[self.weights.entries[name].dtype] == self.dtype(name):
            return self.weights.raw(name)
        return self.changed(name).to(self.dtype(name))

    def changed(self, name: str) -> Tensor:
        """The weight with all that is added to it, float32."""
        weight = self.weights.read(name, torch.device("cpu"))
        for added in self._adds(name):
            weight = added(name.removesuffix(".weight"), weight)
        return weight

    def _adds(self, name: str) -> list[MergedBase]:
        is_weight = name.endswith(".weight")
        return [added for added in self.added if is_weight and added.changes(name.removesuffix(".weight"))]

    @staticmethod
    def _scale(weight: Tensor) -> Tensor:
        return (weight.abs().max() / _FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)


def fold(
    info: CheckpointInfo,
    loras: Sequence[tuple[Path, float]],
    out: Path,
    *,
    precision: str = "same",
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Folded:
    """Write `out`: the model with LoRAs of any kind added, each times its strength. Two weights are in memory at a time.

    ConfigError if a LoRA does not fit the model, or the precision can't be had; ModelFileError, RunError for files.
    """
    _check(loras, out, precision)
    weights = StoredWeights(info)
    _check_quants(weights, precision)
    added, notes = _read(info, loras)
    writer = _Writer(weights, added, precision)
    outline = writer.outline()
    done = 0

    def make(name: str) -> Tensor:
        nonlocal done
        progress(done, len(outline))
        done += 1
        return writer.make(name)

    write_one_by_one(out, outline, make, _metadata(writer.weights.metadata, loras))
    progress(len(outline), len(outline))
    return Folded(len({path for one in added for path in one.modules}), notes)


def _check(loras: Sequence[tuple[Path, float]], out: Path, precision: str) -> None:
    if precision not in FOLD_PRECISIONS:
        raise ConfigError(f"precision is '{precision}': choose one of {', '.join(FOLD_PRECISIONS)}.")
    if not loras:
        raise ConfigError("no LoRA is given: there is nothing to fold in.")
    check_strengths([(path.name, strength) for path, strength in loras])
    if out.suffix.lower() != ".safetensors":
        raise ConfigError(f"the file to write is {out}: name one that ends in .safetensors.")
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another name.")


def _check_quants(weights: StoredWeights, precision: str) -> None:
    quants = {entry.dtype for entry in weights.entries.values()} & set(QUANTS)
    if quants and precision == "same":
        raise ConfigError(
            f"{weights.info.path.name} is a GGUF file ({', '.join(sorted(quants))}), to which nothing can be added: choose the"
            " precision bf16 or fp8_scaled."
        )


def _read(info: CheckpointInfo, loras: Sequence[tuple[Path, float]]) -> tuple[list[MergedBase], tuple[str, ...]]:
    shapes, added, notes = model_shapes(info.config), [], []
    for path, strength in loras:
        file = read_adapter(path)
        report = transfer_report(file, shapes)
        notes += report.notes
        expert = hints_expert(info.path)
        notes += check_expert(file, expert) if expert else []
        modules: dict[str, LoraModule | OtherModule] = {name: file.modules[name] for name in report.placed}
        added.append(MergedBase(modules, strength, ()))
    return added, tuple(notes)


def _metadata(metadata: Mapping[str, str], loras: Sequence[tuple[Path, float]]) -> dict[str, str]:
    kept = {key: text for key, text in metadata.items() if key != FORMAT_METADATA and "hash" not in key}
    names = json.dumps([{"lora": path.name, "strength": strength} for path, strength in loras])
    return {**kept, "format": "pt", "wantrain.folded": names}

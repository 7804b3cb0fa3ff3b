"""LoRA files that are made, until they are written: under a name that is free, or that holds the same weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from ..errors import ConfigError, WanTrainError
from ..safetensors_file import content_hashes
from .formats import KeyStyle, LoraModule, weights_hash, write_lora
from .merge import pair_names
from .other_files import OtherFile, read_adapter, write_state

Slot = Literal["high", "low", "single"]  # whose LoRA: an expert's, or a single model's

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEY_STYLES: dict[str, KeyStyle] = {"comfyui": "official", "kohya": "kohya", "diffusers": "diffusers"}


class Naming(Protocol):
    """How files are written."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def key_style(self) -> str: ...


@dataclass(frozen=True)
class Draft:
    """One file to be written."""

    content: dict[str, LoraModule] | OtherFile
    metadata: dict[str, str]
    note: str

    def hash(self, dtype: torch.dtype, key_style: KeyStyle) -> str:
        """The `sshs_model_hash` that its file has, whatever its metadata."""
        if isinstance(self.content, OtherFile):
            if key_style == "diffusers":
                raise ConfigError(
                    f"a {self.content.kind} adapter has no names in diffusers' style: choose comfyui or kohya."
                )
            return content_hashes(self.content.tensors(dtype, key_style), {})[0]
        return weights_hash(self.content, dtype, key_style)

    def write(self, path: Path, metadata: Mapping[str, str], dtype: torch.dtype, key_style: KeyStyle) -> None:
        if isinstance(self.content, OtherFile):
            write_state(path, self.content.tensors(dtype, key_style), metadata, dtype)
        else:
            write_lora(path, self.content, metadata=metadata, dtype=dtype, key_style=key_style)


def write_drafts(folder: Path, drafts: Mapping[Slot, Draft], options: Naming) -> dict[Slot, Path]:
    """Write each draft under a name that is free, or that holds the same weights already."""
    dtype, key_style = PRECISIONS[options.precision], KEY_STYLES[options.key_style]
    hashes: dict[Slot, str] = {slot: draft.hash(dtype, key_style) for slot, draft in drafts.items()}
    number = 1
    while True:
        stem = options.name if number == 1 else f"{options.name}_v{number}"
        names = _names(stem)
        paths: dict[Slot, Path] = {slot: folder / names[slot] for slot in drafts}
        if all(not path.exists() or _stored_hash(path) == hashes[slot] for slot, path in paths.items()):
            break
        number += 1
    for slot, path in paths.items():
        titled = {**drafts[slot].metadata, "modelspec.title": path.stem, "ss_output_name": path.stem}
        drafts[slot].write(path, titled, dtype, key_style)
    return paths


def _names(stem: str) -> dict[Slot, str]:
    high, low = pair_names(stem)
    return {"high": high, "low": low, "single": f"{stem}.safetensors"}


def _stored_hash(path: Path) -> str:
    try:
        return read_adapter(path).metadata.get("sshs_model_hash", "")
    except WanTrainError:
        return ""

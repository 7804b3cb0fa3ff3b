"""Files of adapters that are no plain LoRA: LoKr, LoHa and DoRA, with the keys that ComfyUI loads.

Read in the dialects of LyCORIS, kohya, musubi-tuner, AI-Toolkit and ComfyUI; written with official names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError, RunError
from ..safetensors_file import content_hashes, write_safetensors
from ..wan.header import HeaderError, read_header, read_in_order
from ..wan.limits import shown
from .keys import official_path, sort_key

# What the keys of each kind end with; the first kind that has one of its own in a file is the file's.
_OWN = {
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "dora": ("dora_scale",),
}
_ENDS = {
    "alpha": "alpha",
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    **{end: end for ends in _OWN.values() for end in ends},
}
_KEY = re.compile(rf"(?P<name>.+)\.(?P<end>{'|'.join(map(re.escape, _ENDS))})")
_ALPHA = "alpha"


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherFile:
    """Such a file in memory; `modules` by official path, in the model's order, each with its tensors by their keys' ends."""

    path: str
    kind: str
    modules: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """As they go into a file; alpha stays float32."""
        return {
            f"diffusion_model.{path}.{end}": tensor.to(torch.float32 if end == _ALPHA else dtype)
            for path, parts in self.modules.items()
            for end, tensor in parts.items()
        }


def kind_of_file(path: Path) -> str | None:
    """ "lokr", "loha" or "dora"; None for any other file, also one that can't be read."""
    try:
        return _kind_of(read_header(path).entries)
    except (HeaderError, OSError):
        return None


def read_other(path: Path) -> OtherFile:
    """ModelFileError if the file is damaged, of another kind, or for another model."""
    try:
        header = read_header(path)
        tensors = dict(read_in_order({name: (header, entry) for name, entry in header.entries.items()}, header.entries))
    except (HeaderError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged or no .safetensors file ({error}): download or copy it again."
        ) from error
    kind = _kind_of(tensors)
    if kind is None:
        raise ModelFileError(f"{path} holds no LoKr, LoHa or DoRA: choose a file of such an adapter.")
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parsed = _KEY.fullmatch(key)
        found = official_path(parsed["name"]) if parsed else None
        if parsed is None or found is None:
            raise ModelFileError(
                f"{path} has the key '{shown(key)}', which is none of a {kind} adapter on a Wan transformer: it was made for"
                " another model, or in a way that can't be read here."
            )
        if not (tensor.dtype.is_floating_point and bool(tensor.float().isfinite().all())):
            raise ModelFileError(f"{path} holds something else than finite numbers as '{shown(key)}': export it again.")
        modules.setdefault(found[0], {})[_ENDS[parsed["end"]]] = tensor
    ordered = {name: modules[name] for name in sorted(modules, key=sort_key)}
    return OtherFile(path=str(path), kind=kind, modules=ordered, metadata=header.metadata)


def read_state(path: Path, kind: str) -> dict[str, Tensor]:
    """The state of an adapter of `kind` in a file, float32. ModelFileError if it is of another kind, or none."""
    file = read_other(path)
    if file.kind != kind:
        raise ModelFileError(f"{path} is a {file.kind} adapter, and not {kind}: choose another file, or another kind.")
    return file.tensors(torch.float32)


def write_state(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> Path:
    """A state as a file that ComfyUI loads. RunError if a weight is not finite in `dtype`, or the disk refuses."""
    held = {
        key: (tensor if key.endswith(f".{_ALPHA}") else tensor.to(dtype)).contiguous()
        for key, tensor in tensors.items()
    }
    for key, tensor in held.items():
        if not bool(tensor.isfinite().all()):
            raise RunError(
                f"{path} was not written, because '{key}' holds values that are not finite: go back to an earlier checkpoint"
                " and lower the learning rate."
            )
    model_hash, legacy_hash = content_hashes(held, metadata)
    hashes = {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_safetensors(path, held, {"format": "pt", **metadata, **hashes})
    return path


def _kind_of(keys: Mapping[str, object]) -> str | None:
    for kind, ends in _OWN.items():
        if any(key.endswith(tuple(f".{end}" for end in ends)) for key in keys):
            return kind
    return None

"""LoRA files: read in every dialect that trainers of Wan write, written in the one that ComfyUI loads.

Legend: r rank, in/out widths of the linear layer. The change of a weight is (alpha / r) * up @ down.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import ModelFileError, RunError
from ..safetensors_file import content_hashes, write_safetensors
from ..wan.header import HeaderError, read_header, read_in_order
from ..wan.limits import shown
from .keys import (
    FOREIGN_METHODS,
    Part,
    Style,
    kohya_key,
    official_key,
    parse_key,
    sort_key,
    split_part,
)
from .peft_settings import adapter_config, config_alpha

Expert = Literal["high", "low"]

# Keys that tell what a file without LoRA weights is; the first that occurs decides.
_OTHER_FILES = (
    (r"(^|\.)head\.modulation$|(^|\.)scale_shift_table$", "a Wan transformer (a whole model, not a LoRA)"),
    (r"^encoder\.block\.\d+\.|^shared\.weight$|^token_embedding\.weight$", "a T5 text encoder"),
    (r"^(?:encoder|decoder)\.(?:conv1|conv_in|downsamples|upsamples|mid)", "a VAE"),
    (r"^visual\.|^vision_model\.", "a CLIP vision encoder"),
    (r"^latents?(_|$)|^context$|^varlen_", "a cache of latents or text embeddings"),
    (r"double_blocks|single_blocks|transformer_blocks|input_blocks|joint_blocks", "a checkpoint of another model"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraModule:
    """The LoRA of one linear layer: down [r, in], up [out, r]."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of `down`."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def scale(self) -> float:
        """Factor in front of up @ down."""
        return self.alpha / self.rank

    def delta(self) -> torch.Tensor:
        """The change of the layer's weight, [out, in] float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """A LoRA file in memory; `modules` is keyed by official path, in the model's order."""

    path: str
    modules: dict[str, LoraModule]
    style: Style
    metadata: dict[str, str]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks, ascending; one element in most files."""
        return tuple(sorted({module.rank for module in self.modules.values()}))

    @property
    def architecture(self) -> str:
        """What the metadata says it was trained on ("wan2.2-t2v-a14b"), or ""."""
        return self.metadata.get("modelspec.architecture", "").split("/")[0].lower()

    @property
    def expert(self) -> Expert | None:
        """Which expert it is for, as far as the metadata or else the file name tells."""
        return expert_of_metadata(self.metadata) or expert_of_name(self.path)

    def __repr__(self) -> str:
        ranks = "/".join(map(str, self.ranks))
        return f"LoraFile({Path(self.path).name!r}, {len(self.modules)} modules, rank {ranks}, {self.style})"


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA for Wan from a .safetensors file written by any trainer.

    ModelFileError if the file is missing, damaged, not a LoRA, of a method other than plain LoRA, or for another model.
    """
    path = Path(path)
    if not _is_file(path):
        raise ModelFileError(f"{path} does not exist: choose a LoRA file (.safetensors).")
    try:
        header = read_header(path)
        _refuse_other_files(list(header.entries), str(path))
        tensors = dict(read_in_order({name: (header, entry) for name, entry in header.entries.items()}, header.entries))
    except HeaderError as error:
        raise ModelFileError(
            f"{path} is damaged, cut short or not a .safetensors file ({error.reason}): download or copy it again."
        ) from error
    modules, style = parse_modules(tensors, header.metadata, where=str(path))
    return LoraFile(path=str(path), modules=modules, style=style, metadata=header.metadata)


def parse_modules(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, *, where: str = "the LoRA"
) -> tuple[dict[str, LoraModule], Style]:
    """Key dict in any dialect -> modules by official path, and the dialect. `where` names the file in errors."""
    _refuse_other_files(list(tensors), where)
    parts: dict[str, dict[Part, torch.Tensor]] = {}
    styles: set[Style] = set()
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            raise ModelFileError(
                f"{where} has the key '{shown(key)}', which belongs to no module of a Wan transformer: "
                "it was made for another model."
            )
        module = parts.setdefault(parsed.path, {})
        if parsed.part in module:
            raise ModelFileError(f"{where} holds {parsed.path} twice, as a file with two LoRAs does: split it first.")
        module[parsed.part] = tensor
        styles.add(parsed.style)
    style: Style = styles.pop() if len(styles) == 1 else "mixed"
    config = adapter_config(metadata or {}, where)
    modules = {path: _module(path, parts[path], config, where) for path in sorted(parts, key=sort_key)}
    return modules, style


def to_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Modules -> key dict as ComfyUI loads it, always with alpha (float32). `dtype` None keeps the dtypes."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        tensors[official_key(path, "down")] = module.down.to(dtype or module.down.dtype)
        tensors[official_key(path, "up")] = module.up.to(dtype or module.up.dtype)
        tensors[official_key(path, "alpha")] = torch.tensor(float(module.alpha))
    return tensors


def kohya_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Modules -> key dict as kohya and musubi-tuner write it, always with alpha (float32). `dtype` None keeps them."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        tensors[kohya_key(path, "down")] = module.down.to(dtype or module.down.dtype)
        tensors[kohya_key(path, "up")] = module.up.to(dtype or module.up.dtype)
        tensors[kohya_key(path, "alpha")] = torch.tensor(float(module.alpha))
    return tensors


def to_official(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Key dict in any dialect -> `diffusion_model.<path>.lora_A.weight`, `.lora_B.weight`, `.alpha`."""
    return to_tensors(parse_modules(tensors)[0])


def to_kohya(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Key dict in any dialect -> `lora_unet_<path>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    return kohya_tensors(parse_modules(tensors)[0])


def write_lora(
    path: str | Path,
    modules: Mapping[str, LoraModule],
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.bfloat16,
    key_style: Literal["official", "kohya"] = "official",
) -> Path:
    """Write a LoRA that ComfyUI loads in either key style; equal input gives equal bytes. Returns the path.

    Adds the hashes of the content to `metadata`. RunError if a weight is not finite, or the file cannot be written.
    """
    path = Path(path)
    if not modules:
        raise RunError(f"{path} was not written, because the LoRA has no modules: train or merge something first.")
    for name, module in modules.items():
        if not all(bool(torch.isfinite(part.to(dtype)).all()) for part in (module.down, module.up)):
            raise RunError(
                f"{path} was not written, because {name} holds values that are not finite in {_dtype_name(dtype)}: "
                "go back to an earlier checkpoint and lower the learning rate."
            )
    tensors = _file_tensors(modules, dtype, key_style)
    model_hash, legacy_hash = content_hashes(tensors, metadata)
    hashes = {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_safetensors(path, tensors, {"format": "pt", **metadata, **hashes})
    return path


def weights_hash(
    modules: Mapping[str, LoraModule], dtype: torch.dtype, key_style: Literal["official", "kohya"] = "official"
) -> str:
    """The `sshs_model_hash` that a file of these modules has, whatever its metadata."""
    return content_hashes(_file_tensors(modules, dtype, key_style), {})[0]


def _file_tensors(
    modules: Mapping[str, LoraModule], dtype: torch.dtype, key_style: Literal["official", "kohya"]
) -> dict[str, torch.Tensor]:
    return to_tensors(modules, dtype) if key_style == "official" else kohya_tensors(modules, dtype)


def expert_of_metadata(metadata: Mapping[str, str]) -> Expert | None:
    """Expert by `modelspec.timestep_range`, whose boundary is 875 (T2V) or 900 (I2V); None if it spans both."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*", metadata.get("modelspec.timestep_range", ""))
    if match is None:
        return None
    start, stop = int(match[1]), int(match[2])
    if start >= 800:
        return "high"
    return "low" if stop <= 950 else None


def expert_of_name(path: str | Path) -> Expert | None:
    """Expert by file name ("x_high_noise", "WAN2.2-LowNoise_x", "x-low"); None if it names neither or both."""
    name = Path(path).stem.lower()
    named = [label for label in ("high", "low") if re.search(rf"{label}[ _-]?noise|(?<![a-z]){label}(?![a-z])", name)]
    if len(named) != 1:
        return None
    return "high" if named[0] == "high" else "low"


def _module(path: str, parts: Mapping[Part, torch.Tensor], config: Mapping[str, Any], where: str) -> LoraModule:
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None:
        missing = "down (lora_A)" if down is None else "up (lora_B)"
        raise ModelFileError(f"{where} lacks the {missing} weight of {path}: the file is incomplete, export it again.")
    if down.ndim != 2 or up.ndim != 2:
        raise ModelFileError(
            f"{where} trains the convolution {path}, shape {list(down.shape)}; "
            "only LoRAs of linear layers can be used here."
        )
    if not (down.dtype.is_floating_point and up.dtype.is_floating_point):
        raise ModelFileError(
            f"{where} holds whole numbers as the weights of {path}: the file is damaged, export it again."
        )
    if down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise ModelFileError(
            f"{where} has weights of {path} that do not fit together, {list(up.shape)} times {list(down.shape)}: "
            "the file is damaged, export it again."
        )
    rank = down.shape[0]
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise ModelFileError(f"{where} has an alpha for {path} that is not one number: export the file again.")
        alpha = float(parts["alpha"])
    else:
        alpha = config_alpha(config, path, rank)
    if not math.isfinite(alpha):
        raise ModelFileError(f"{where} has the alpha {alpha} for {path}: the file is damaged, export it again.")
    return LoraModule(down=down, up=up, alpha=alpha)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk can have
        return False


def _refuse_other_files(keys: list[str], where: str) -> None:
    for pattern, method in FOREIGN_METHODS:
        key = next((key for key in keys if pattern.search(key)), None)
        if key is not None:
            raise ModelFileError(
                f"{where} is a {method} file (key '{shown(key)}'), and only plain LoRA can be read here: "
                "load it with the host's own LoRA loader instead."
            )
    if any(split is not None and split[1] != "alpha" for split in map(split_part, keys)):
        return
    for pattern, what in _OTHER_FILES:
        if any(re.search(pattern, key) for key in keys):
            raise ModelFileError(f"{where} is {what}: choose a LoRA file.")
    found = f"its first key is '{shown(keys[0])}'" if keys else "it is empty"
    raise ModelFileError(f"{where} holds no LoRA weights, {found}: choose a LoRA file.")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

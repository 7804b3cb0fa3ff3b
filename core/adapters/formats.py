"""LoRA files: read in every dialect that trainers of Wan write, written in the one that ComfyUI loads.

Legend: r rank, in/out widths of the linear layer. The change of a weight is (alpha / r) * up @ down.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..errors import ModelFileError, RunError
from ..safetensors_file import content_hashes, write_safetensors
from ..wan.header import HeaderError, read_header, read_in_order
from ..wan.limits import shown
from .keys import (
    Part,
    Style,
    component,
    diffusers_key,
    kohya_key,
    names_a_module,
    official_key,
    parse_key,
    sort_key,
)
from .named_expert import Expert, expert_of_metadata, expert_of_name
from .peft_settings import METADATA, Settings, adapter_config, config_alpha
from .refused import refuse_other_files
from .seen_by_host import host_notes
from .two_experts import expert_of_keys, keys_of

KeyStyle = Literal["official", "kohya", "diffusers"]  # of what is written


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
    notes: tuple[str, ...] = ()  # what ComfyUI's loaders make of the file as it is, where that is not what it means
    of_names: Expert | None = None  # the expert that the names of its tensors tell

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
        """Which expert it is for, as far as its tensors' names, the metadata or else the file name tell."""
        return self.of_names or expert_of_metadata(self.metadata) or expert_of_name(self.path)

    def __repr__(self) -> str:
        ranks = "/".join(map(str, self.ranks))
        return f"LoraFile({Path(self.path).name!r}, {len(self.modules)} modules, rank {ranks}, {self.style})"


def read_lora(path: str | Path, half: Expert | None = None) -> LoraFile:
    """Read a LoRA for Wan from a .safetensors file written by any trainer; of a file that holds two, one `half`.

    ModelFileError if the file is missing, damaged, not a LoRA, of a method other than plain LoRA, or for another model, and
    for two LoRAs without `half`.
    """
    path = Path(path)
    if not _is_file(path):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {what}: choose a LoRA file (.safetensors).")
    try:
        header = read_header(path)
        refuse_other_files(list(header.entries), str(path))
        entries = {name: header.entries[name] for name in keys_of(header.entries, half, str(path))}
        tensors = dict(read_in_order({name: (header, entry) for name, entry in entries.items()}, entries))
    except HeaderError as error:
        raise ModelFileError(
            f"{path} is damaged, cut short or not a .safetensors file ({error.reason}): download or copy it again."
        ) from error
    modules, style = parse_modules(tensors, header.metadata, where=str(path))
    notes = host_notes(path, tensors, {module.scale for module in modules.values()})
    of_names = half or expert_of_keys(tensors)
    return LoraFile(
        path=str(path), modules=modules, style=style, metadata=header.metadata, notes=notes, of_names=of_names
    )


def parse_modules(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, *, where: str = "the LoRA"
) -> tuple[dict[str, LoraModule], Style]:
    """Key dict in any dialect -> modules by official path, and the dialect. `where` names the file in errors."""
    refuse_other_files(list(tensors), where)
    keys_of(tensors, None, where)
    parts: dict[str, dict[Part, torch.Tensor]] = {}
    components: dict[str, str] = {}
    styles: set[Style] = set()
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            why = (
                "which begins as no known trainer's do: save the LoRA with the names of ComfyUI, diffusers or kohya."
                if names_a_module(key)
                else "which belongs to no module of a Wan transformer: it was made for another model."
            )
            raise ModelFileError(f"{where} has the key '{shown(key)}', {why}")
        module = parts.setdefault(parsed.path, {})
        if parsed.part in module:
            raise ModelFileError(
                f"{where} holds {parsed.path} twice, the second time as '{shown(key)}'. These look like two LoRAs, and"
                " their names do not tell which tensor belongs to which: save each LoRA as a file of its own with the program"
                " that made it."
            )
        module[parsed.part] = tensor
        components[parsed.path] = component(key)
        styles.add(parsed.style)
    style: Style = styles.pop() if len(styles) == 1 else "mixed"
    config = adapter_config(metadata or {}, where)
    modules = {
        path: _module(path, parts[path], (config, components[path]), where) for path in sorted(parts, key=sort_key)
    }
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


def diffusers_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Modules -> key dict as diffusers writes it: it knows no alphas, so that alpha / rank goes into `up`."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        scaled = module.up if module.scale == 1 else module.up.float() * module.scale
        tensors[diffusers_key(path, "down")] = module.down.to(dtype or module.down.dtype)
        tensors[diffusers_key(path, "up")] = scaled.to(dtype or module.up.dtype)
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
    key_style: KeyStyle = "official",
) -> Path:
    """Write a LoRA in a key style; ComfyUI loads all but "diffusers". Equal input gives equal bytes. Returns the path.

    Adds the hashes of the content to `metadata`, and leaves out what describes other tensors. RunError if a weight is not
    finite, or the file cannot be written.
    """
    path = Path(path)
    if not modules:
        raise RunError(f"{path} was not written, because the LoRA has no modules: train or merge something first.")
    for name, module in modules.items():
        parts = (module.down.to(dtype), module.up.to(dtype), torch.tensor(float(module.alpha)))
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise RunError(
                f"{path} was not written, because {name} holds values that are not finite in {_dtype_name(dtype)}: "
                "go back to an earlier checkpoint and lower the learning rate."
            )
    tensors = _file_tensors(modules, dtype, key_style)
    metadata = {key: text for key, text in metadata.items() if key != METADATA}  # of the file that this was made of
    model_hash, legacy_hash = content_hashes(tensors, metadata)
    hashes = {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_safetensors(path, tensors, {"format": "pt", **metadata, **hashes})
    return path


def weights_hash(modules: Mapping[str, LoraModule], dtype: torch.dtype, key_style: KeyStyle = "official") -> str:
    """The `sshs_model_hash` that a file of these modules has, whatever its metadata."""
    return content_hashes(_file_tensors(modules, dtype, key_style), {})[0]


def _file_tensors(
    modules: Mapping[str, LoraModule], dtype: torch.dtype, key_style: KeyStyle
) -> dict[str, torch.Tensor]:
    made = {"official": to_tensors, "kohya": kohya_tensors, "diffusers": diffusers_tensors}
    return made[key_style](modules, dtype)


def _module(path: str, parts: Mapping[Part, torch.Tensor], config: tuple[Settings, str], where: str) -> LoraModule:
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
        alpha = config_alpha(*config, path, rank)
    if not math.isfinite(alpha):
        raise ModelFileError(f"{where} has the alpha {alpha} for {path}: the file is damaged, export it again.")
    return LoraModule(down=down, up=up, alpha=alpha)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk can have
        return False


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

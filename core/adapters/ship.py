"""From trained LoRAs to the files that a user keeps and ships: checked, merged, named, labelled, never overwritten."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..disk import check_writable
from ..errors import ConfigError, WanTrainError
from ..names import check_name
from ..safetensors_file import content_hashes
from .formats import LoraFile, LoraModule, read_lora, weights_hash, write_lora
from .merge import check_pair, merge, pair_names, resize
from .other_files import OtherFile, read_adapter, write_state

Slot = Literal["high", "low", "single"]  # whose LoRA: an expert's, or a single model's

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEY_STYLES: dict[str, Literal["official", "kohya"]] = {"comfyui": "official", "kohya": "kohya"}


@dataclass(frozen=True)
class Source:
    """What one file is made of: a LoRA, and perhaps a second one that is merged in."""

    first: Path
    second: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ShipOptions:
    """How the files are made."""

    name: str = "my_lora"  # start of the file names
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    key_style: Literal["comfyui", "kohya"] = "comfyui"
    rank: int = 0  # lower the rank to this; 0: keep it
    second_strength: float = 1.0
    author: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        for field, choices in (("precision", PRECISIONS), ("key_style", KEY_STYLES)):
            if getattr(self, field) not in choices:
                raise ConfigError(f"{field} is '{getattr(self, field)}': choose one of {', '.join(choices)}.")
        if self.rank < 0:
            raise ConfigError(f"rank is {self.rank}: give the rank to lower to, or 0 to keep it.")


@dataclass(frozen=True)
class Shipment:
    """What was written: a file and a note for each slot, and what looks wrong with the pair."""

    files: dict[Slot, Path]
    notes: dict[Slot, str]
    warnings: list[str]

    def lines(self) -> list[str]:
        """For the user: a line for each file, then the warnings."""
        lines = [f"{path.name}: {self.notes[slot]}" for slot, path in self.files.items()]
        return lines + [f"- {warning}" for warning in self.warnings]


@dataclass(frozen=True)
class _Draft:
    """One file to be written."""

    content: dict[str, LoraModule] | OtherFile
    metadata: dict[str, str]
    note: str

    def hash(self, dtype: torch.dtype, key_style: Literal["official", "kohya"]) -> str:
        """The `sshs_model_hash` that its file has, whatever its metadata."""
        if isinstance(self.content, OtherFile):
            return content_hashes(self.content.tensors(dtype, key_style), {})[0]
        return weights_hash(self.content, dtype, key_style)

    def write(
        self, path: Path, metadata: Mapping[str, str], dtype: torch.dtype, key_style: Literal["official", "kohya"]
    ) -> None:
        if isinstance(self.content, OtherFile):
            write_state(path, self.content.tensors(dtype, key_style), metadata, dtype)
        else:
            write_lora(path, self.content, metadata=metadata, dtype=dtype, key_style=key_style)


def ship(folder: Path, sources: Mapping[Slot, Source], options: ShipOptions) -> Shipment:
    """Write the files of `sources` into `folder`; equal input gives equal bytes.

    Experts' files are NAME_high_noise and NAME_low_noise, a single model's NAME. Where a file of that name holds other
    weights, all count up together (NAME_v2). ConfigError if the sources make no pair or can't be merged, ModelFileError
    if one can't be read, RunError if the folder can't be written.
    """
    _check_slots(sources)
    check_writable(folder)
    warnings = []
    if "high" in sources and "low" in sources:
        warnings = check_pair(read_adapter(sources["high"].first), read_adapter(sources["low"].first))
    drafts: dict[Slot, _Draft] = {slot: _draft(source, options) for slot, source in sources.items()}
    files = _write(folder, drafts, options)
    return Shipment(files, {slot: draft.note for slot, draft in drafts.items()}, warnings)


def _check_slots(sources: Mapping[Slot, Source]) -> None:
    if not sources:
        raise ConfigError("there is no LoRA to write: give one for the high or low noise expert, or a single model's.")
    if "single" in sources and len(sources) > 1:
        raise ConfigError("a single model's LoRA and an expert's don't make a pair: give one or the other.")


def _draft(source: Source, options: ShipOptions) -> _Draft:
    file = read_adapter(source.first)
    if isinstance(file, OtherFile):
        return _other_draft(file, source, options)
    modules, metadata = file.modules, dict(file.metadata)
    rank = options.rank or None
    note = f"{len(modules)} modules, rank {max(file.ranks)}"
    if source.second:
        parts: list[tuple[LoraFile, float]] = [(file, 1.0), (read_lora(source.second), options.second_strength)]
        modules, report = merge(parts, rank=rank, method="svd" if rank else "concat")
        metadata["modelspec.merged_from"] = ",".join(Path(part.path).name for part, _ in parts)
        note = f"merged with {source.second.name}: {report}"
    elif rank and rank < max(file.ranks):
        modules, report = resize(file, rank=rank)
        note = f"lowered to rank {rank}: {report}"
    metadata["ss_network_dim"] = str(max(module.rank for module in modules.values()))
    metadata["ss_network_alpha"] = f"{max(module.alpha for module in modules.values()):g}"
    return _Draft(modules, {**metadata, **_texts(options)}, note)


def _other_draft(file: OtherFile, source: Source, options: ShipOptions) -> _Draft:
    """LoKr, LoHa and DoRA go out as they are: what is not linear can be neither added nor cut."""
    if source.second or options.rank:
        what = f"merged with {source.second.name}" if source.second else f"lowered to rank {options.rank}"
        raise ConfigError(
            f"{source.first.name} is a {file.kind} adapter, which can't be {what}: only plain LoRAs can; leave second LoRA and"
            " rank empty."
        )
    note = f"{len(file.modules)} modules, {file.kind} of rank {max(file.ranks)}"
    return _Draft(file, {**file.metadata, **_texts(options)}, note)


def _texts(options: ShipOptions) -> dict[str, str]:
    given = {"modelspec.author": options.author, "modelspec.description": options.description}
    return {key: text for key, text in given.items() if text}


def _write(folder: Path, drafts: Mapping[Slot, _Draft], options: ShipOptions) -> dict[Slot, Path]:
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

"""From trained LoRAs to the files that a user keeps and ships: checked, merged, named, labelled, never overwritten."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..disk import check_writable
from ..errors import ConfigError
from ..names import check_name
from ..words import counted
from .drafts import KEY_STYLES, PRECISIONS, Draft, Slot, write_drafts
from .formats import LoraFile, read_lora
from .merge import check_expert, check_pair, merge, resize
from .other_files import OtherFile, read_adapter

DIFFUSERS_ONLY = "ComfyUI's loaders do not know the names in diffusers' style: this file is for diffusers."


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
    key_style: Literal["comfyui", "kohya", "diffusers"] = "comfyui"
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


def ship(folder: Path, sources: Mapping[Slot, Source], options: ShipOptions) -> Shipment:
    """Write the files of `sources` into `folder`; equal input gives equal bytes.

    Experts' files are NAME_high_noise and NAME_low_noise, a single model's NAME. Where a file of that name holds other
    weights, all count up together (NAME_v2). ConfigError if the sources make no pair or can't be merged, ModelFileError
    if one can't be read, RunError if the folder can't be written.
    """
    _check_slots(sources)
    check_writable(folder)
    if "high" in sources and "low" in sources:
        warnings = check_pair(read_adapter(sources["high"].first), read_adapter(sources["low"].first))
    else:
        warnings = [
            sentence
            for slot, source in sources.items()
            if slot != "single"
            for sentence in check_expert(read_adapter(source.first), slot)
        ]
    if options.key_style == "diffusers":
        warnings.append(DIFFUSERS_ONLY)
    drafts: dict[Slot, Draft] = {slot: _draft(source, options) for slot, source in sources.items()}
    files = write_drafts(folder, drafts, options)
    return Shipment(files, {slot: draft.note for slot, draft in drafts.items()}, warnings)


def _check_slots(sources: Mapping[Slot, Source]) -> None:
    if not sources:
        raise ConfigError("there is no LoRA to write: give one for the high or low noise expert, or a single model's.")
    if "single" in sources and len(sources) > 1:
        raise ConfigError("a single model's LoRA and an expert's don't make a pair: give one or the other.")


def _draft(source: Source, options: ShipOptions) -> Draft:
    file = read_adapter(source.first)
    if isinstance(file, OtherFile):
        return _other_draft(file, source, options)
    modules, metadata = file.modules, dict(file.metadata)
    rank = options.rank or None
    note = f"{counted(len(modules), 'module')}, rank {max(file.ranks)}"
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
    return Draft(modules, {**metadata, **_texts(options)}, note)


def _other_draft(file: OtherFile, source: Source, options: ShipOptions) -> Draft:
    """LoKr, LoHa and DoRA go out as they are: what is not linear can be neither added nor cut."""
    if source.second or options.rank:
        what = f"merged with {source.second.name}" if source.second else f"lowered to rank {options.rank}"
        raise ConfigError(
            f"{source.first.name} is an adapter of the kind {file.kind}, which can't be {what}: only plain LoRAs can; give no"
            " second LoRA, and leave rank at 0."
        )
    note = f"{counted(len(file.modules), 'module')}, {file.kind} of rank {max(file.ranks)}"
    return Draft(file, {**file.metadata, **_texts(options)}, note)


def _texts(options: ShipOptions) -> dict[str, str]:
    given = {"modelspec.author": options.author, "modelspec.description": options.description}
    return {key: text for key, text in given.items() if text}

"""A file that holds two LoRAs, one for each expert of Wan 2.2, as two files that every loader reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..disk import check_writable
from ..errors import ConfigError
from ..facts import EXPERTS
from ..names import check_name, clean_name
from ..words import counted
from .afterwards import MADE, FileOptions, WrittenFile, with_dimensions
from .drafts import KEY_STYLES, PRECISIONS, Draft, Slot, write_drafts
from .formats import LoraFile, LoraModule, expert_of_metadata
from .named_expert import TRAINED_THROUGH
from .other_files import ALPHA, OtherFile, read_adapter
from .ship import DIFFUSERS_ONLY

SAME = "same"
_NAMELESS = "my_lora"  # where nothing of the file's name can be in one everywhere
_RANGE = "modelspec.timestep_range"


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How the two files are written."""

    name: str = ""  # empty: that of the file
    precision: Literal["same", "bf16", "fp16", "fp32"] = "same"  # as in the file
    key_style: Literal["comfyui", "kohya", "diffusers"] = "comfyui"

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        for field, choices in (("precision", (SAME, *PRECISIONS)), ("key_style", KEY_STYLES)):
            if getattr(self, field) not in choices:
                raise ConfigError(f"{field} is '{getattr(self, field)}': choose one of {', '.join(choices)}.")


def split_file(folder: Path, source: Path, options: SplitOptions) -> list[WrittenFile]:
    """Write NAME_high_noise and NAME_low_noise into `folder`, the high noise expert's first.

    ConfigError or ModelFileError before anything is written, also where the file holds one LoRA alone.
    """
    check_writable(folder)
    files: dict[Slot, LoraFile | OtherFile] = {expert: read_adapter(source, expert) for expert in EXPERTS}
    precision = _own_precision(list(files.values())) if options.precision == SAME else options.precision
    writing = FileOptions(
        name=options.name or clean_name(source.stem) or _NAMELESS, precision=precision, key_style=options.key_style
    )
    drafts: dict[Slot, Draft] = {slot: _draft(file, source) for slot, file in files.items()}
    paths = write_drafts(folder, drafts, writing)
    also = (f"- {DIFFUSERS_ONLY}",) if options.key_style == "diffusers" else ()
    return [WrittenFile(paths[slot], slot, (f"{paths[slot].name}: {drafts[slot].note}", *also)) for slot in drafts]


def _draft(file: LoraFile | OtherFile, source: Path) -> Draft:
    content = file if isinstance(file, OtherFile) else file.modules
    metadata = {key: text for key, text in file.metadata.items() if key != TRAINED_THROUGH}
    if expert_of_metadata(metadata) != file.of_names:
        metadata.pop(_RANGE, None)  # of both together
    metadata[MADE] = json.dumps({"from": source.name, "half": file.of_names})
    kind = f"{file.kind} of rank" if isinstance(file, OtherFile) else "rank"
    note = f"{counted(len(file.modules), 'module')}, {kind} {'/'.join(map(str, file.ranks))}"
    return Draft(content, with_dimensions(content, metadata), note)


def _own_precision(files: list[LoraFile | OtherFile]) -> Literal["bf16", "fp16", "fp32"]:
    """The number format that keeps every bit of both; alphas stay float32 in any."""
    found: set[torch.dtype] = set()
    for file in files:
        for module in file.modules.values():
            parts = {"down": module.down, "up": module.up} if isinstance(module, LoraModule) else module.parts
            found |= {part.dtype for end, part in parts.items() if end != ALPHA}
    if found == {torch.bfloat16}:
        return "bf16"
    return "fp16" if found == {torch.float16} else "fp32"

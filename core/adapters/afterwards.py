"""What one does with LoRA files after the run: merged, changed and written anew, never over another file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..disk import check_writable
from ..errors import ANOTHER_LORA, ConfigError
from ..names import check_name
from ..words import counted
from .combine import MergeOptions, combine
from .drafts import KEY_STYLES, PRECISIONS, Draft, Slot, write_drafts
from .formats import LoraFile, LoraModule, read_lora
from .low_rank import check_cut
from .merge import check_strengths, resize
from .other_files import OtherFile, read_adapter
from .ship import DIFFUSERS_ONLY
from .strip import without

_DIMENSIONS = ("ss_network_dim", "ss_network_alpha")
MADE = "wantrain.made"  # how the file was made, in JSON


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a file is written."""

    name: str
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    key_style: Literal["comfyui", "kohya", "diffusers"] = "comfyui"

    def __post_init__(self) -> None:
        check_name(self.name)
        for field, choices in (("precision", PRECISIONS), ("key_style", KEY_STYLES)):
            if getattr(self, field) not in choices:
                raise ConfigError(f"{field} is '{getattr(self, field)}': choose one of {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What becomes of one LoRA; with the defaults it is only written anew."""

    rank: int = 0  # lower it to this; 0: keep it
    energy: float = 0.0  # keep the fewest singular values that hold this share; 0: all
    drop_blocks: str = ""  # "0-9, 15"
    drop_layers: str = ""  # patterns, one a line
    strength: float = 1.0  # folded into the weights

    def __post_init__(self) -> None:
        check_cut(self.rank or None, self.energy or None)
        check_strengths([("the LoRA", self.strength)])


@dataclass(frozen=True)
class WrittenFile:
    """The file, which expert's it is, and what to say."""

    path: Path
    slot: Slot
    lines: tuple[str, ...]


def merge_files(
    folder: Path,
    sources: Sequence[tuple[Path, float]],
    merging: MergeOptions,
    writing: FileOptions,
    *,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> WrittenFile:
    """Several LoRAs, each times its strength, as one file in `folder`: NAME_high_noise where all are the high noise expert's.

    ConfigError or ModelFileError before anything is written.
    """
    if len(sources) < 2:
        raise ConfigError(f"{len(sources)} LoRA is given: merging takes two or more.", about=ANOTHER_LORA)
    check_writable(folder)
    files = [(read_lora(path), strength) for path, strength in sources]
    modules, report = combine(files, merging, device=device, progress=progress)
    names = [Path(file.path).name for file, _ in files]
    made = {**merging.facts(), "files": names, "strengths": [strength for _, strength in files]}
    metadata = {**files[0][0].metadata, "modelspec.merged_from": ",".join(names), MADE: json.dumps(made)}
    notes = [f"merged of {' and '.join(names)} by {merging.method}: {report}"]
    experts = {file.expert for file, _ in files}
    if len(experts) > 1:
        said = ", ".join(f"{Path(file.path).name}: {file.expert or 'either'}" for file, _ in files)
        notes.append(f"- These LoRAs are not of one expert ({said}): a merged one fits neither well.")
        metadata.pop("modelspec.timestep_range", None)
    bases = {file.architecture for file, _ in files} - {""}
    if len(bases) > 1:
        notes.append(f"- These LoRAs were trained on different models: {', '.join(sorted(bases))}.")
    slot: Slot = (files[0][0].expert or "single") if len(experts) == 1 else "single"
    return _write(folder, modules, metadata, slot, writing, notes)


def change_file(folder: Path, source: Path, changes: Changes, writing: FileOptions) -> WrittenFile:
    """One LoRA with blocks left out, its rank lowered, or in other names, as a file in `folder`.

    ConfigError or ModelFileError before anything is written.
    """
    check_writable(folder)
    file = read_adapter(source)
    slot: Slot = file.expert or "single"
    if isinstance(file, OtherFile):
        if changes != Changes():
            raise ConfigError(
                f"{source.name} is an adapter of the kind {file.kind}, of which only names and precision can be changed: leave"
                " rank and energy at 0, drop_blocks and drop_layers empty, and strength at 1."
            )
        return _write(
            folder, file, file.metadata, slot, writing, [f"{counted(len(file.modules), 'module')} of a {file.kind}"]
        )
    before = len(file.modules)
    modules = without(file.modules, blocks=changes.drop_blocks, layers=changes.drop_layers)
    notes = [f"{len(modules)} of {counted(before, 'module')}" if len(modules) < before else counted(before, "module")]
    if changes.rank or changes.energy:
        kept = LoraFile(path=file.path, modules=modules, style=file.style, metadata={})
        modules, report = resize(kept, changes.rank or None, changes.energy or None)
        notes.append(str(report))
    if changes.strength != 1:
        modules = {p: LoraModule(down=m.down, up=m.up, alpha=m.alpha * changes.strength) for p, m in modules.items()}
        notes.append(f"times {changes.strength:g}")
    notes = ["; ".join(notes), *(f"- {note} This has been done." for note in file.notes)]
    metadata = {**file.metadata, MADE: json.dumps({"from": source.name, **vars(changes)})}
    return _write(folder, modules, metadata, slot, writing, notes)


def write_made(
    folder: Path, modules: dict[str, LoraModule], metadata: dict[str, str], slot: Slot, writing: FileOptions, note: str
) -> WrittenFile:
    """A LoRA that was made otherwise, such as out of a fine-tune."""
    check_writable(folder)
    return _write(folder, modules, metadata, slot, writing, [note])


def with_dimensions(content: dict[str, LoraModule] | OtherFile, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the rank and alpha of what is written; of another kind than plain LoRA without them."""
    kept = {key: text for key, text in metadata.items() if key not in _DIMENSIONS}
    if not isinstance(content, OtherFile):
        kept["ss_network_dim"] = str(max(module.rank for module in content.values()))
        kept["ss_network_alpha"] = f"{max(module.alpha for module in content.values()):g}"
    return kept


def _write(
    folder: Path,
    content: dict[str, LoraModule] | OtherFile,
    metadata: dict[str, str],
    slot: Slot,
    writing: FileOptions,
    notes: list[str],
) -> WrittenFile:
    path = write_drafts(folder, {slot: Draft(content, with_dimensions(content, metadata), notes[0])}, writing)[slot]
    if writing.key_style == "diffusers":
        notes = [*notes, f"- {DIFFUSERS_ONLY}"]
    return WrittenFile(path, slot, (f"{path.name}: {notes[0]}", *notes[1:]))

"""The file of a LoRA that was extracted from a fine-tune."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..facts import NUM_TIMESTEPS, official_boundary
from ..wan.checkpoint import hints_expert, inspect
from .afterwards import FileOptions, WrittenFile, write_made
from .extract import extract
from .low_rank import check_cut
from .metadata import LoraDescription, base_model_name, lora_metadata


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How much of the difference is kept."""

    rank: int = 64  # at most
    energy: float = 0.0  # keep the fewest singular values that hold this share; 0: as many as the rank
    all_linears: bool = False  # also those outside the blocks
    seed: int = 0

    def __post_init__(self) -> None:
        check_cut(self.rank, self.energy or None)


def extract_file(
    folder: Path,
    base: Path,
    tuned: Path,
    options: ExtractOptions,
    writing: FileOptions,
    *,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> WrittenFile:
    """The difference tuned - base as a LoRA file in `folder`. ConfigError or ModelFileError if the two make none."""
    first, second = inspect(base), inspect(tuned)
    found = extract(
        first,
        second,
        rank=options.rank,
        energy=options.energy or None,
        all_linears=options.all_linears,
        seed=options.seed,
        device=device,
        progress=progress,
    )
    expert = hints_expert(tuned) or hints_expert(base)
    boundary = round(NUM_TIMESTEPS * official_boundary(first.config.variant))
    windows = {"high": (boundary, NUM_TIMESTEPS), "low": (0, boundary)}
    rank = max(module.rank for module in found.modules.values())
    described = LoraDescription(
        name=writing.name,
        base_model=base_model_name(first.config, is_expert=expert is not None),
        rank=rank,
        alpha=float(rank),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        timestep_range=windows.get(expert or ""),
        description=f"The difference between {tuned.name} and {base.name}.",
    )
    return write_made(folder, found.modules, lora_metadata(described), expert or "single", writing, str(found))

"""Merging LoRAs whose changes get in each other's way: TIES and DARE, by peft's functions, on the changes themselves.

TIES (Yadav et al., 2023, arXiv:2306.01708) keeps the largest numbers of each change, and of those the ones whose sign most
agree on. DARE (Yu et al., 2023, arXiv:2311.03099) drops numbers at random, and scales the rest up. The result has no low rank:
it is cut to one. Legend: in/out widths of the layer.
"""

import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ANOTHER_LORA, ConfigError
from .formats import LoraFile, LoraModule
from .keys import sort_key
from .light_import import import_peft
from .low_rank import check_cut, low_rank
from .merge import ResizeReport, merge

Method = Literal["linear", "svd", "ties", "dare_linear", "dare_ties"]
METHODS: dict[str, str] = {
    "linear": "the sum, exact; the ranks add up",
    "svd": "the sum, cut to a rank",
    "ties": "only the largest numbers, and of those the ones whose sign most agree on; cut to a rank",
    "dare_linear": "numbers dropped at random, the rest scaled up, added; cut to a rank",
    "dare_ties": "both; cut to a rank",
}
DENSE = ("ties", "dare_linear", "dare_ties")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How several LoRAs become one."""

    method: Method = "linear"
    rank: int = 0  # of the result; 0: the sum of the ranks, for linear alone
    energy: float | None = None  # keep the fewest singular values that hold this share, at most `rank`
    density: float = 0.5  # share of the numbers that TIES and DARE keep
    seed: int = 0  # of what DARE drops

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method is '{self.method}': choose one of {', '.join(METHODS)}.")
        if self.rank < 0:
            raise ConfigError(f"rank must be at least 1, got {self.rank}.")
        if self.method == "linear" and (self.rank or self.energy is not None):
            raise ConfigError("'linear' always adds the ranks: choose svd, or leave rank and energy empty.")
        if self.method != "linear" and not self.rank:
            raise ConfigError(f"'{self.method}' cuts the result to a rank: give rank, such as 32.")
        check_cut(self.rank or None, self.energy)
        if not 0.0 < self.density <= 1.0:
            raise ConfigError(f"density is the share to keep, above 0 and at most 1; got {self.density}.")

    def facts(self) -> dict[str, str | int | float]:
        """What the file says of how it was made."""
        cut = {"rank": self.rank} if self.method != "linear" else {}
        cut |= {"energy": self.energy} if self.energy is not None else {}
        dense = {"density": self.density} if self.method in DENSE else {}
        return {"method": self.method, **cut, **dense, **({"seed": self.seed} if "dare" in self.method else {})}


def combine(
    files: Sequence[tuple[LoraFile, float]],
    options: MergeOptions,
    *,
    device: torch.device | None = None,
    progress: Progress = lambda _done, _all: None,
) -> tuple[dict[str, LoraModule], ResizeReport]:
    """One LoRA of several, each times its strength; equal input and seed give an equal result on the same device.

    A module that only some files have is merged of those. The results are float32 with alpha = rank. ConfigError if widths
    do not fit.
    """
    if options.method in ("linear", "svd") and options.energy is None:
        kind = "concat" if options.method == "linear" else "svd"
        return merge(files, rank=options.rank or None, method=kind)
    if not files:
        raise ConfigError("There is nothing to merge: give at least one LoRA.", about=ANOTHER_LORA)
    merge([(file, strength) for file, strength in files], rank=None, method="concat")  # its checks
    place = device or torch.device("cpu")
    paths = sorted({path for file, _ in files for path in file.modules}, key=sort_key)
    modules: dict[str, LoraModule] = {}
    errors: dict[str, float] = {}
    for number, path in enumerate(paths):
        progress(number, len(paths))
        seed = (options.seed + zlib.crc32(path.encode())) % 2**63
        parts = [(file.modules[path], strength) for file, strength in files if path in file.modules]
        whole = merged_change(parts, options, seed, place)
        modules[path], errors[path] = low_rank(whole, options.rank, options.energy, seed)
    progress(len(paths), len(paths))
    return modules, ResizeReport(ranks={path: module.rank for path, module in modules.items()}, errors=errors)


def merged_change(
    parts: Sequence[tuple[LoraModule, float]], options: MergeOptions, seed: int, device: torch.device
) -> Tensor:
    """The merged change of one layer, [out, in] float32, before it is cut to a rank."""
    import_peft()
    from peft.utils import merge_utils

    changes = [
        module.scale * (module.up.to(device, torch.float32) @ module.down.to(device, torch.float32))
        for module, _ in parts
    ]
    weights = torch.tensor([strength for _, strength in parts], device=device, dtype=torch.float32)
    if options.method == "svd":
        return merge_utils.task_arithmetic(changes, weights)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        warnings.simplefilter("ignore")  # peft's, at a density of 1
        torch.manual_seed(seed)
        return getattr(merge_utils, options.method)(changes, weights, options.density)

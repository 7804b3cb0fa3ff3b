"""The LoRA in a fine-tune: the difference of two checkpoints of one model, layer by layer, cut to a rank."""

import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..wan.checkpoint import CheckpointInfo
from ..wan.stored import StoredWeights
from .formats import LoraModule
from .keys import official_path, sort_key
from .low_rank import check_cut, low_rank
from .merge import ResizeReport

_LINEAR = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)|ffn\.\d)")
_NOTHING = 1e-6  # of the norm of a weight: less than the rounding of its file


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """The LoRA, what was kept of each layer, and the share of the whole difference that no LoRA of these layers can hold."""

    modules: dict[str, LoraModule]
    report: ResizeReport
    outside: float  # of the norm of the difference: norms, biases, embeddings

    def __str__(self) -> str:
        text = str(self.report)
        return text + (f"; {100 * self.outside:.2g} % of the difference is in other tensors" if self.outside else "")


def extract(
    base: CheckpointInfo,
    tuned: CheckpointInfo,
    *,
    rank: int,
    energy: float | None = None,
    all_linears: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Extracted:
    """The difference tuned - base as a LoRA of at most `rank`; two weights of one layer are in memory at a time.

    `all_linears`: also those outside the blocks. ConfigError if the two are of different size or kind, or do not differ.
    """
    check_cut(rank, energy)
    if base.config != tuned.config:
        raise ConfigError(
            f"{tuned.path.name} is no fine-tune of {base.path.name}: their sizes or kinds differ; give two of one model."
        )
    place = device or torch.device("cpu")
    before, after = StoredWeights(base), StoredWeights(tuned)
    modules: dict[str, LoraModule] = {}
    errors: dict[str, float] = {}
    inside = outside = 0.0
    names = sorted(before.names)
    for number, name in enumerate(names):
        progress(number, len(names))
        path, _, end = name.rpartition(".")
        weight = before.read(name, place)
        change = after.read(name, place) - weight
        size = float(change.double().square().sum())
        is_changed = size > (_NOTHING * float(weight.double().norm())) ** 2
        if end == "weight" and change.ndim == 2 and is_changed and _is_chosen(path, all_linears=all_linears):
            modules[path], errors[path] = low_rank(change, rank, energy, seed + zlib.crc32(path.encode()))
            inside += size
        else:
            outside += size
    progress(len(names), len(names))
    if not modules:
        raise ConfigError(
            f"{tuned.path.name} and {base.path.name} have the same linear layers: there is no LoRA to extract."
        )
    ordered = {path: modules[path] for path in sorted(modules, key=sort_key)}
    report = ResizeReport(ranks={path: module.rank for path, module in ordered.items()}, errors=errors)
    return Extracted(modules=ordered, report=report, outside=math.sqrt(outside / (inside + outside)))


def _is_chosen(path: str, *, all_linears: bool) -> bool:
    return official_path(path) is not None and (all_linears or _LINEAR.fullmatch(path) is not None)

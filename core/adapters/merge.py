"""Merging and resizing LoRAs, and checks on the pair of files that Wan 2.2 needs.

Legend: R rank of the sum, k rank kept, in/out widths. All linear algebra in float64 on the factors; the [out, in]
matrix is never formed: with up = Qu Ru and down^T = Qd Rd, up @ down = Qu (Ru Rd^T) Qd^T, and the small [R, R] core
has its singular values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..errors import ANOTHER_LORA, ConfigError
from ..words import counted
from .formats import Expert, LoraFile, LoraModule, expert_of_metadata, expert_of_name
from .keys import sort_key
from .low_rank import check_cut, num_kept
from .other_files import OtherFile, OtherModule

MAX_STRENGTH = 100


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """What was kept. Errors are Frobenius norms: |dropped| / |whole|, 0 where nothing was dropped."""

    ranks: dict[str, int]
    errors: dict[str, float]

    @property
    def max_error(self) -> float:
        """Largest relative error of any module."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        ranks = sorted(set(self.ranks.values()))
        span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        worst = max(self.errors, key=lambda path: self.errors[path])
        return f"{counted(len(self.ranks), 'module')} of rank {span}; largest relative error {self.errors[worst]:.2e} ({worst})"


def merge(
    files: Sequence[tuple[LoraFile, float]], *, rank: int | None, method: Literal["concat", "svd"]
) -> tuple[dict[str, LoraModule], ResizeReport]:
    """Sum of LoRAs, each times its strength. "concat" is exact and adds the ranks; "svd" cuts the sum to `rank`.

    A module that only some files have is kept. The results are float32 with alpha = rank, strengths folded in. With
    "svd" a module keeps fewer than `rank` where the ranks add up to fewer. ConfigError if widths do not fit.
    """
    if not files:
        raise ConfigError("There is nothing to merge: give at least one LoRA.", about=ANOTHER_LORA)
    check_strengths([(Path(file.path).name, strength) for file, strength in files])
    if method == "concat" and rank is not None:
        raise ConfigError(f"rank is {rank}, but 'concat' always adds the ranks: choose 'svd', or leave rank empty.")
    if method == "svd":
        _check_rank(rank)
    modules: dict[str, LoraModule] = {}
    for path in sorted({path for file, _ in files for path in file.modules}, key=sort_key):
        modules[path] = _concat(path, [(file, strength) for file, strength in files if path in file.modules])
    if method == "svd":
        return _truncate_all(modules, rank, None)
    return modules, ResizeReport(ranks={p: m.rank for p, m in modules.items()}, errors=dict.fromkeys(modules, 0.0))


def check_strengths(strengths: Sequence[tuple[str, float]]) -> None:
    """(what it is the strength of, the strength). ConfigError for one that is no sensible number, and where all are 0."""
    for name, strength in strengths:
        if not abs(strength) <= MAX_STRENGTH:  # NaN too
            raise ConfigError(
                f"the strength of {name} is {strength:g}: give a number from -{MAX_STRENGTH} to {MAX_STRENGTH}, such as 1."
            )
    if not any(strength for _, strength in strengths):
        raise ConfigError("the strength is 0, which leaves nothing of the LoRA: give a number, such as 1.")


def resize(
    file: LoraFile, rank: int | None = None, energy: float | None = None
) -> tuple[dict[str, LoraModule], ResizeReport]:
    """Best approximation of smaller rank (Eckart-Young), module by module.

    `rank` is an upper limit; `energy` in (0, 1] keeps the fewest singular values whose squares add up to that share,
    so ranks may differ between modules. Either or both. The results are float32 with alpha = rank.
    """
    if rank is None and energy is None:
        raise ConfigError("Say how to resize: give a rank, a share of energy to keep, or both.")
    check_cut(rank, energy)
    return _truncate_all(file.modules, rank, energy)


def check_expert(file: LoraFile | OtherFile, wanted: Expert) -> list[str]:
    """A sentence for each sign that the file is of the other expert."""
    signs = (
        ("metadata says", expert_of_metadata(file.metadata)),
        ("name says", expert_of_name(file.path)),
        ("tensors' names say", file.of_names),
    )
    return [
        f"{file.path} is used for the {wanted}-noise expert, but its {source} {found}."
        for source, found in signs
        if found not in (None, wanted)
    ]


def check_pair(high: LoraFile | OtherFile, low: LoraFile | OtherFile) -> list[str]:
    """What looks wrong with a pair for the high- and low-noise experts, one sentence each; [] if nothing does."""
    warnings = [*check_expert(high, "high"), *check_expert(low, "low")]
    if high.modules.keys() != low.modules.keys():
        only_high, only_low = set(high.modules) - set(low.modules), set(low.modules) - set(high.modules)
        example = min(only_high | only_low, key=sort_key)
        warnings.append(
            f"The two files train different modules: {len(only_high)} only in the high one, "
            f"{len(only_low)} only in the low one, for example {example}."
        )
    elif _same_weights(high, low):
        warnings.append("The two files hold the same weights, so one expert's LoRA is used for both.")
    if high.ranks != low.ranks:
        warnings.append(f"The ranks differ: high {_numbers(high.ranks)}, low {_numbers(low.ranks)}.")
    widths = {p for p in high.modules.keys() & low.modules.keys() if _widths(high, p) != _widths(low, p)}
    if widths:
        path = min(widths, key=sort_key)
        warnings.append(
            f"The two files are for models of different size: {path} is {_widths(high, path)} in the high one "
            f"and {_widths(low, path)} in the low one (out, in)."
        )
    if high.architecture and low.architecture and high.architecture != low.architecture:
        warnings.append(f"They were trained on different models: high {high.architecture}, low {low.architecture}.")
    return warnings


def pair_names(name: str) -> tuple[str, str]:
    """File names of a pair: high first."""
    return f"{name}_high_noise.safetensors", f"{name}_low_noise.safetensors"


def _concat(path: str, parts: Sequence[tuple[LoraFile, float]]) -> LoraModule:
    widths = _widths(parts[0][0], path)
    for file, _ in parts[1:]:
        if _widths(file, path) != widths:
            raise ConfigError(
                f"{file.path} cannot be merged with {parts[0][0].path}: {path} is {_widths(file, path)} in one and "
                f"{widths} in the other (out, in), so they belong to models of different size."
            )
    modules = [(file.modules[path], strength) for file, strength in parts]
    down = torch.cat([module.down.float() for module, _ in modules])  # [R, in]
    up = torch.cat([module.up.float() * (strength * module.scale) for module, strength in modules], dim=1)  # [out, R]
    return LoraModule(down=down, up=up, alpha=float(down.shape[0]))


def _truncate_all(
    modules: Mapping[str, LoraModule], rank: int | None, energy: float | None
) -> tuple[dict[str, LoraModule], ResizeReport]:
    resized: dict[str, LoraModule] = {}
    errors: dict[str, float] = {}
    for path, module in modules.items():
        resized[path], errors[path] = _truncate(module, rank, energy)
    return resized, ResizeReport(ranks={path: module.rank for path, module in resized.items()}, errors=errors)


def _truncate(module: LoraModule, rank: int | None, energy: float | None) -> tuple[LoraModule, float]:
    q_up, r_up = torch.linalg.qr(module.up.double() * module.scale)  # [out, R], [R, R]
    q_down, r_down = torch.linalg.qr(module.down.double().T)  # [in, R], [R, R]
    left, values, right = torch.linalg.svd(r_up @ r_down.T)
    squares = values.square()
    total = squares.sum()
    kept = num_kept(values, total, rank, energy)
    root = values[:kept].sqrt()
    error = float((squares[kept:].sum() / total).sqrt()) if total > 0 else 0.0
    up = (q_up @ left[:, :kept] * root).float()
    down = (root[:, None] * (right[:kept] @ q_down.T)).float()
    return LoraModule(down=down, up=up, alpha=float(kept)), error


def _check_rank(rank: int | None) -> None:
    if rank is None or rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}.")


def _same_weights(high: LoraFile | OtherFile, low: LoraFile | OtherFile) -> bool:
    return all(_is_same(high.modules[path], low.modules[path]) for path in high.modules)


def _is_same(one: LoraModule | OtherModule, other: LoraModule | OtherModule) -> bool:
    if isinstance(one, LoraModule) and isinstance(other, LoraModule):
        return one.alpha == other.alpha and torch.equal(one.down, other.down) and torch.equal(one.up, other.up)
    if isinstance(one, OtherModule) and isinstance(other, OtherModule):
        these, those = one.parts, other.parts
        return these.keys() == those.keys() and all(torch.equal(part, those[end]) for end, part in these.items())
    return False


def _widths(file: LoraFile | OtherFile, path: str) -> tuple[int, int]:
    return file.modules[path].shape


def _numbers(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks))

"""The whole check, and its text: one sentence of verdict first, then what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch

from ..adapters.other_files import read_adapter
from ..errors import TWO_LORAS, HostOnlyError, ModelFileError
from ..facts import EXPERTS
from ..wan.checkpoint import CheckpointInfo
from ..words import counted
from .base import OnBase, check_base
from .file import Adapter, Layer, base_of, check_file, layers_of
from .findings import Finding, Weight, once
from .graph import Graph
from .workflow import check_workflow, uses_of

_BAR = 24


@dataclass(frozen=True)
class Check:
    """Everything that was found of one LoRA."""

    name: str
    file: Adapter | None  # None: it can't be read
    layers: Sequence[Layer]
    on_base: OnBase | None
    findings: Sequence[Finding]  # the worst first
    uses: Sequence[str] = field(default_factory=tuple)
    halves: Sequence[tuple[Adapter, Sequence[Layer]]] = ()  # of a file with two LoRAs, the high noise expert's first

    @property
    def verdict(self) -> str:
        """One sentence, and the remedy."""
        if self.findings and (self.file is None or self.findings[0].weight != Weight.HINT):
            return str(self.findings[0])
        if self.on_base is None:
            sound = f"{self.name} is sound: {counted(len(self.layers), 'layer')}, none of them empty."
            return (
                f"{sound} {self.findings[0]}" if self.findings else f"{sound} Name its base to see what it does there."
            )
        works = f"{self.name} works on this model: it moves the output on fixed noise by up to {100 * self.on_base.most:.3g} %."
        return f"{works} {self.findings[0]}" if self.findings else works

    @property
    def is_well(self) -> bool:
        """Whether nothing stands in the way of its effect."""
        return not self.findings or self.findings[0].weight == Weight.HINT

    def lines(self) -> list[str]:
        """For a terminal or a node."""
        lines = [self.verdict, ""]
        if self.file is not None:
            lines += _file_lines(self.file, self.layers)
        for half, layers in self.halves:
            lines += [f"The {half.of_names} noise half", *(f"  {line}" for line in _file_lines(half, layers)), ""]
        if self.on_base is not None and self.on_base.by_block:
            lines += ["", "Change beside the weights, by block", *_bars(self.on_base.by_block)]
            lines += ["", "Effect on fixed noise, as a share of the model's output", *_effect_lines(self.on_base)]
        if self.uses:
            lines += ["", "In the workflow", *(f"  {use}" for use in self.uses)]
        others = self.findings if self.is_well and self.file is not None else self.findings[1:]
        if others:
            lines += ["", "Also", *(f"  - {finding}" for finding in others)]
        return lines


def check_lora(
    path: Path,
    *,
    base: CheckpointInfo | None = None,
    workflow: Graph | None = None,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda _: None,
    advice: Mapping[str, str] = MappingProxyType({}),
) -> Check:
    """Look at a LoRA's file, at what it does to `base`, and at what `workflow` does with it. Nothing is refused.

    `advice`: how whoever asks does what an error is about, as for `advised`.
    """
    try:
        file = read_adapter(path)
    except ModelFileError as error:
        if error.about == TWO_LORAS:
            return _two_loras(path, error, advice.get(TWO_LORAS, ""))
        weight = Weight.HINT if isinstance(error, HostOnlyError) else Weight.NO_EFFECT
        return Check(path.name, None, (), None, [Finding(weight, str(error), "")])
    layers = layers_of(file)
    found = check_file(file, layers)
    on_base = None
    if base is not None:
        on_base = check_base(file, layers, base, device or torch.device("cpu"), progress)
        found += on_base.findings
    uses: list[str] = []
    if workflow is not None:
        found += check_workflow(workflow, file)
        uses = [str(use) for use in uses_of(workflow, path.name)]
    return Check(path.name, file, layers, on_base, sorted(once(found), key=lambda finding: finding.weight), uses)


def _two_loras(path: Path, error: ModelFileError, remedy: str) -> Check:
    """Of a file with two LoRAs: how to split it, and what each half holds."""
    found = [Finding(Weight.NO_EFFECT, str(error), remedy)]
    halves: list[tuple[Adapter, Sequence[Layer]]] = []
    try:
        for expert in EXPERTS:
            half = read_adapter(path, expert)
            layers = layers_of(half)
            halves.append((half, layers))
            of_half = check_file(replace(half, notes=()), layers)  # the names are changed by splitting
            found += [replace(one, sentence=f"The {expert} noise half: {one.sentence}") for one in of_half]
    except ModelFileError as why:
        found.append(Finding(Weight.NO_EFFECT, str(why), ""))
    return Check(path.name, None, (), None, found, halves=halves)


def _file_lines(file: Adapter, layers: Sequence[Layer]) -> list[str]:
    ranks = "/".join(map(str, file.ranks))
    scales = sorted({layer.scale for layer in layers})
    scale = f"{scales[0]:.3g}" if len(scales) == 1 else f"{scales[0]:.3g} to {scales[-1]:.3g}"
    kind = "LoRA" if not hasattr(file, "kind") else str(getattr(file, "kind"))  # noqa: B009
    lines = [
        f"For       {base_of(file)}",
        f"Layers    {len(layers)}, {kind} of rank {ranks}, {file.style} names",
    ]
    lines += [] if kind == "oft" else [f"Strength  alpha / rank = {scale}"]
    known = [layer.rms for layer in layers if layer.rms is not None]
    if known:
        lines.append(f"Change    {min(known):.1e} to {max(known):.1e} (root mean square of a layer)")
    return lines


def _effect_lines(on_base: OnBase) -> list[str]:
    lines = _bars({f"sigma {sigma:g}": share for sigma, share in on_base.effect.items()})
    marks = ["" if sigma in on_base.used else "  (the other expert's)" for sigma in on_base.effect]
    return [f"{line}{mark}" for line, mark in zip(lines, marks, strict=True)]


def _bars(shares: dict[str, float]) -> list[str]:
    """A line each, with a bar beside the number."""
    most = max((share for share in shares.values() if share == share), default=0.0)
    width = max(map(len, shares))
    lines: list[str] = []
    for name, share in shares.items():
        filled = round(_BAR * share / most) if most and share == share else 0
        lines.append(f"  {name:<{width}}  {100 * share:8.3g} %  {'#' * filled}")
    return lines

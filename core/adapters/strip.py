"""Leaving blocks and layers out of a LoRA: what a model does with its first blocks is not what it does with its last."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..errors import ConfigError
from ..settings.patterns import patterns_of

_BLOCK = re.compile(r"(?:vace_)?blocks\.(\d+)\.")
_RANGE = re.compile(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?")
T = TypeVar("T")


def block_numbers(text: str) -> set[int]:
    """The numbers in "0-9, 15"; {} for "". ConfigError for what is no number or range."""
    found: set[int] = set()
    for piece in filter(str.strip, text.split(",")):
        match = _RANGE.fullmatch(piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ConfigError(f"blocks has '{piece.strip()}': write numbers and ranges, such as 0-9, 15.")
        found.update(range(first, last + 1))
    return found


def without(modules: Mapping[str, T], *, blocks: str = "", layers: str = "") -> dict[str, T]:
    """The modules that are in none of `blocks` ("0-9, 15") and in whose path no pattern of `layers` (one a line) is found.

    ConfigError for a block or a pattern that the LoRA does not have, or if nothing is left.
    """
    numbers, patterns = block_numbers(blocks), patterns_of(layers, "layers")
    present = {number for path in modules if (number := _block_of(path)) is not None}
    absent = sorted(numbers - present)
    if absent:
        raise ConfigError(
            f"blocks names {_some(absent)}, which the LoRA does not change: it has blocks {_some(sorted(present))}."
        )
    for pattern in patterns:
        if not any(pattern.search(path) for path in modules):
            raise ConfigError(f"layers has the pattern '{pattern.pattern}', which is found in no layer of the LoRA.")
    left = {
        path: module
        for path, module in modules.items()
        if _block_of(path) not in numbers and not any(pattern.search(path) for pattern in patterns)
    }
    if not left:
        raise ConfigError("blocks and layers leave nothing of the LoRA: leave out less.")
    return left


def _block_of(path: str) -> int | None:
    match = _BLOCK.match(path)
    return int(match[1]) if match else None


def _some(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]]) or "none"

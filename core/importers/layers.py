"""Which layers of a Wan model a word of another trainer means: its names are ours, or those of diffusers.

A path is `blocks.0.self_attn.q`; diffusers' name of it `blocks.0.attn1.to_q`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.keys import module_names
from ..adapters.places import LINEARS

_BLOCK = re.compile(r"(?:.*?\.)?blocks\.(?P<number>\d+)(?:(?P<dot>\.)(?P<leaf>.*))?")
LEAVES = tuple(f"{part}.{name}" for part, names in LINEARS.items() for name in names)


@dataclass(frozen=True)
class Chosen:
    """What some words choose: whole parts of all blocks, or else patterns for adapter.include or adapter.exclude."""

    parts: tuple[str, ...]  # () where it is no whole parts
    patterns: tuple[str, ...]
    unknown: tuple[str, ...]  # words that no layer's name contains


def layers_with(words: Sequence[str]) -> Chosen:
    """The layers whose names contain one of `words`."""
    leaves: list[str] = []
    patterns: list[str] = []
    unknown: list[str] = []
    for word in words:
        block = _BLOCK.fullmatch(word)
        is_all = word.rstrip(".") in ("blocks", "transformer.blocks")
        found = _leaves_with((block["leaf"] or "") if block else "" if is_all else word)
        if not found:
            unknown.append(word)
        elif block:
            patterns.append(_of_block(block["number"], block["dot"] is not None, found))
        else:
            leaves += [leaf for leaf in found if leaf not in leaves]
    parts = tuple(part for part in LINEARS if any(leaf.startswith(f"{part}.") for leaf in leaves))
    whole = all(f"{part}.{name}" in leaves for part in parts for name in LINEARS[part])
    if whole and not patterns:
        return Chosen(parts, tuple(parts), tuple(unknown))
    return Chosen((), (*(_pattern(leaf) for leaf in leaves), *patterns), tuple(unknown))


def _leaves_with(word: str) -> list[str]:
    """Those of `LEAVES` that contain it in either spelling, as they stand behind a block's number."""
    return [leaf for leaf in LEAVES if any(word in f"{name}." for name in _spellings(leaf))]


def _spellings(leaf: str) -> tuple[str, ...]:
    return tuple(name.removeprefix("blocks.0") for name in module_names(f"blocks.0.{leaf}"))


def _pattern(leaf: str) -> str:
    return re.escape(f".{leaf}") + "$"


def _of_block(number: str, is_whole: bool, leaves: Sequence[str]) -> str:
    """A word that ends within the number means all blocks that begin with it, as in blocks.1 and blocks.12."""
    if not is_whole:
        return rf"^blocks\.{number}"
    if len(leaves) == len(LEAVES):
        return rf"^blocks\.{number}\."
    return rf"^blocks\.{number}\.(?:{'|'.join(map(re.escape, leaves))})$"

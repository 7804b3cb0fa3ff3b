"""Sizes in pixels, as trainers write them, to a width and a height of ours."""

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .answers import Answer, changed, either
from .declared import exists, number, side
from .tables import VARIANTS, can_have_several

Size = tuple[int, int]


def size_of(value: Any) -> tuple[Size, str]:
    """(width, height) of one side or of a pair, as multiples of 16; and what was changed for it."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    numbers = [number(one) for one in sides]
    if len(numbers) != 2 or any(one is None or not 1 <= one <= 16_384 for one in numbers):
        raise ConfigError(f"{value} is no size in pixels.")
    width, height = (side(one or 0) for one in numbers)
    is_same = [width, height] == numbers
    return (width, height), "" if is_same else f"sides are multiples of 16, so it is {width} x {height}."


def sizes(values: Sequence[Any]) -> Answer:
    """One size, or the same files at several sizes."""
    found = [size_of(value) for value in values]
    if not found:
        raise ConfigError("it names no size.")
    whys = [why for _, why in found if why]
    unique = list(dict.fromkeys(size for size, _ in found))
    (width, height), *more = unique
    if not more:
        return either(" ".join(whys), dataset__width=width, dataset__height=height)
    if exists("dataset.more_sizes"):
        words = ", ".join(str(w) if w == h else f"{w}x{h}" for w, h in more)
        return either(" ".join(whys), dataset__width=width, dataset__height=height, dataset__more_sizes=words)
    if can_have_several():
        variants = [{"width": w, "height": h} for w, h in unique]
        return Answer("changed", {VARIANTS: variants}, " ".join(["it is a dataset for each size.", *whys]))
    width, height = max(unique, key=lambda size: size[0] * size[1])
    why = f"a dataset has one size here: the largest is taken, {width} x {height}."
    return changed(" ".join([why, *whys]), dataset__width=width, dataset__height=height)

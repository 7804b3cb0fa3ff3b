"""Options by the names that other trainers have for them, from the declarations in core/settings."""

import functools
import math
import re
from typing import Any

from ..errors import ConfigError
from ..facts import longest_clip
from ..recipe.recipe import Recipe
from ..settings.option import Option, all_options
from .answers import Answer, changed, not_supported

PEERS = {
    "musubi": "musubi-tuner",
    "aitoolkit": "AI-Toolkit",
    "simpletuner": "SimpleTuner",
    "diffusion_pipe": "diffusion-pipe",
}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@functools.cache
def options_by_place() -> dict[str, Option]:
    """Every option of a recipe by its place: adapter.rank."""
    return {item.place: item for item in all_options(Recipe)}


def exists(place: str) -> bool:
    """Whether a recipe has this option."""
    return place in options_by_place()


@functools.cache
def _by_name(peer: str) -> dict[str, tuple[Option, ...]]:
    found: dict[str, list[Option]] = {}
    for item in all_options(Recipe):
        if item.in_recipe and (name := getattr(item, peer)):
            found.setdefault(name.removeprefix("!"), []).append(item)
    return {name: tuple(items) for name, items in found.items()}


def declared(peer: str, key: str) -> tuple[Option, ...]:
    """The options that say that `key` is their name in this trainer."""
    return _by_name(peer).get(key, ())


def by_declaration(peer: str, key: str, value: Any) -> Answer:
    """What becomes of an option that no rule knows: the declaration with its name decides, where there is one."""
    found = declared(peer, key)
    if not found:
        return not_supported("there is no such option here.")
    if len(found) > 1:
        places = " and ".join(item.place for item in found)
        return not_supported(f"it stands for {places}, and which is meant can't be told.")
    item = next(iter(found))
    return fit(item, value, reversed_meaning=getattr(item, peer).startswith("!"))


def fit(item: Option, value: Any, *, reversed_meaning: bool = False) -> Answer:
    """The value as one of this option, or why it is none of it."""
    try:
        meant = _meant(item, value, reversed_meaning)
        item.check(meant)
    except ConfigError as error:
        return not_supported(f"{error}")
    if isinstance(meant, float) and not isinstance(value, bool) and float(value) != meant:
        return changed("it is rounded.", **{item.place: meant})
    return Answer("mapped", {item.place: meant})


def _meant(item: Option, value: Any, reversed_meaning: bool) -> Any:
    kind = item.kinds[0]
    if kind is bool:
        found = _WORDS.get(str(value).lower())
        if found is not None:
            return found != reversed_meaning
    elif kind in (int, float):
        found = number(value)
        if found is not None and (kind is float or float(found).is_integer()):
            return kind(found)
    elif item.choices and isinstance(value, str):
        chosen = choice(item, value)
        if chosen is not None:
            return chosen
        raise ConfigError(f"there is no '{value}' here: {item.label} has {', '.join(map(str, item.choices))}.")
    elif isinstance(value, str) and kind is str:
        return value
    raise ConfigError(f"{item.label} is something else here: {item.help}")


def choice(item: Option, *words: str) -> Any:
    """The first of the words that is a choice of the option, whatever its case, dashes and underscores; None where none is."""
    choices = {_bare(str(one)): one for one in item.choices}
    return next((choices[_bare(word)] for word in words if _bare(word) in choices), None)


def choice_of(place: str, *words: str) -> Any:
    """As `choice`, of the option at a place; None too where there is no such option."""
    item = options_by_place().get(place)
    return None if item is None else choice(item, *words)


def _bare(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def number(value: Any) -> float | None:
    """A finite number, also one that is written as a text (YAML reads 1e-4 as one); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value if isinstance(value, int) or math.isfinite(value) else None
    try:
        found = float(str(value))
    except ValueError:
        return None
    if not math.isfinite(found):
        return None
    return int(found) if found.is_integer() and re.fullmatch(r"[+-]?\d{1,18}", str(value).strip()) else found


def whole(value: Any) -> int | None:
    """A whole number; None for anything else."""
    found = number(value)
    return int(found) if found is not None and abs(found) < 2**63 and float(found).is_integer() else None


def truth(value: Any) -> bool:
    """What a file means by true, "true", 1; everything else is false."""
    return _WORDS.get(str(value).lower(), bool(value) and not isinstance(value, str))


def side(pixels: float) -> int:
    """The multiple of 16 that is nearest to a side in pixels."""
    return max(16, round(pixels / 16) * 16)


def frames(count: int) -> int:
    """The most frames that Wan takes of so many: 4n+1."""
    return longest_clip(max(1, count))

"""Recipes that have proved themselves, as plain values by the names that settings have on the nodes.

One file for each source. Every value says where it comes from; docs/recipes.md shows them all.
"""

from typing import Any

from ...errors import ConfigError
from ...settings.option import all_options
from ..recipe import Recipe
from .ai_toolkit import AI_TOOLKIT
from .ai_toolkit_i2v import IMAGE_TO_VIDEO
from .musubi import MUSUBI
from .preset import LATENTS, Preset
from .simpletuner import SIMPLETUNER

__all__ = ["PRESETS", "Preset", "node_values", "of_card", "preset", "variants"]

PRESETS: dict[str, Preset] = {**MUSUBI, **AI_TOOLKIT, **IMAGE_TO_VIDEO, **SIMPLETUNER}


def preset(name: str) -> Preset:
    """A preset by its name; ConfigError if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"there is no recipe '{name}': choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def variants(kind: str) -> dict[str, Preset]:
    """The presets of a kind, those for smaller GPUs first."""
    found = {name: chosen for name, chosen in PRESETS.items() if chosen.kind == kind}
    return dict(sorted(found.items(), key=lambda pair: pair[1].card_gb))


def of_card(kind: str, gigabytes: float | None) -> str:
    """Name of the kind's preset for a GPU of so much memory: the largest that it has room for, else the smallest.

    None for `gigabytes`: there is no GPU to ask.
    """
    found = variants(kind)
    if not found:
        raise ConfigError(f"there is no recipe '{kind}': choose one of {', '.join(PRESETS)}.")
    # A GPU sold with 24 GB reports a little less than 24 * 2**30 bytes, or a little more than 24e9.
    fitting = [name for name, chosen in found.items() if gigabytes is not None and chosen.card_gb <= gigabytes * 1.05]
    return fitting[-1] if fitting else next(iter(found))


def node_values(chosen: Preset) -> dict[str, dict[str, Any]]:
    """Class of node -> widget -> value. What the preset does not name, but another does, has its default.

    So that one preset after another gives the second, and not a mixture. The frames given to an image-to-video model follow
    the model: a preset that says nothing of them leaves them.
    """
    defaults = {item.label: item.widget.shows(item.default) for item in all_options(Recipe) if item.widget}
    found: dict[str, dict[str, Any]] = {}
    for one in PRESETS.values():
        for node, values in one.values().items():
            for name in values:
                found.setdefault(node, {})[name] = defaults[name]
    found.pop(LATENTS, None)
    for node, values in chosen.values().items():
        found.setdefault(node, {}).update(values)
    return found

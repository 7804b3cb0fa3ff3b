"""Which layers of a model get an adapter, and of which rank and strength: from the options and the layers' names alone.

Legend: r rank. The change of a weight is (alpha / r) * up @ down.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..errors import ConfigError
from ..settings.adapter import AdapterOptions
from .keys import sort_key

LINEARS = {
    "self_attn": ("q", "k", "v", "o"),
    "cross_attn": ("q", "k", "v", "o", "k_img", "v_img"),  # the last two only in Wan 2.1 I2V
    "ffn": ("0", "2"),
}


@dataclass(frozen=True)
class Place:
    """The adapter of one layer."""

    rank: int
    alpha: float  # as files have it: the strength is alpha / rank, also where the options say rank-stabilised


def effective_alpha(options: AdapterOptions, rank: int, alpha: float | None = None) -> float:
    """What a file says as alpha for a layer of this rank. `alpha`: of the layer, where it has its own.

    rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732) scales by alpha / sqrt(r), which is (alpha sqrt(r)) / r.
    """
    chosen = (options.alpha if alpha is None else alpha) or float(rank)
    return chosen * math.sqrt(rank) if options.rslora else chosen


def places(options: AdapterOptions, paths: Iterable[str]) -> dict[str, Place]:
    """Those of `paths`, official names of layers, that get an adapter, block by block."""
    choices = "|".join(rf"{target}\.(?:{'|'.join(LINEARS[target])})" for target in LINEARS if target in options.targets)
    wanted = re.compile(rf"blocks\.\d+\.(?:{choices})")
    include, exclude, rules = options.included, options.excluded, options.rank_rules
    found: dict[str, Place] = {}
    for path in sorted(filter(wanted.fullmatch, paths), key=sort_key):
        if include and not any(pattern.search(path) for pattern in include):
            continue
        if any(pattern.search(path) for pattern in exclude):
            continue
        rule = next((rule for rule in rules if rule.pattern.search(path)), None)
        rank, alpha = (rule.rank, rule.alpha) if rule else (options.rank, None)
        found[path] = Place(rank, effective_alpha(options, rank, alpha))
    return found


def target_layers(model: nn.Module, options: AdapterOptions) -> dict[str, tuple[nn.Module, Place]]:
    """The linear layers of `model` that get an adapter, by official name. ConfigError if there are none."""
    modules = dict[str, nn.Module](model.named_modules())
    found = {path: (modules[path], place) for path, place in places(options, modules).items()}
    if not found:
        raise ConfigError(
            f"The model has no linear layers named blocks.N.{{{', '.join(options.targets)}}}"
            f"{' that adapter_include and adapter_exclude leave' if options.include or options.exclude else ''}: "
            "load a Wan transformer, or choose other targets."
        )
    for path, (layer, _) in found.items():
        if not (isinstance(getattr(layer, "in_features", None), int) and hasattr(layer, "out_features")):
            raise ConfigError(f"{path} is a {type(layer).__name__}, which is no linear layer and cannot carry a LoRA.")
    return found


def check_patterns(options: AdapterOptions, paths: Iterable[str]) -> None:
    """ConfigError for a pattern that is found in none of the layers that it could decide, or if no layer is left."""
    paths = tuple(paths)
    for name, patterns in (
        ("adapter_include", options.included),
        ("adapter_exclude", options.excluded),
        ("adapter_ranks", tuple(rule.pattern for rule in options.rank_rules)),
    ):
        for pattern in patterns:
            if not any(pattern.search(path) for path in paths):
                raise ConfigError(
                    f"{name} has the pattern '{pattern.pattern}', which is found in no layer's name: the names are like"
                    f" {', '.join(list(paths)[:1] + list(paths)[-1:])}."
                )
    if paths and not places(options, paths):
        raise ConfigError(
            "adapter_include and adapter_exclude leave no layer of those that targets chooses, so nothing would be trained:"
            " loosen one of them."
        )

"""Which runs a bench makes: every combination of concepts, seeds and settings that its command line asks for."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ...core.errors import ConfigError
from .command import common_settings
from .concepts import CONCEPTS, Concept
from .family import STAGES
from .settings import Settings, changed, differing, flat

STAGE_SETS = {"high": "high", "low": "low", "both": "+".join(STAGES)}
# Settings that an argument of the command decides.
DECIDED = {
    "loop.seed": "--seeds",
    "stages": "--stages",
    "loop.checkpoint_every": "--measure-every",
    "loop.keep_last": "--measure-every",
}


@dataclass(frozen=True)
class Run:
    """One row to be."""

    concept: Concept
    settings: Settings  # the seed in it

    @property
    def setting(self) -> str:
        """The stages and what differs from the defaults, the seed apart: "adapter.rank=4 stages=high+low"."""
        told = set(differing(self.settings)) - {"loop.seed"} | {"stages"}
        return " ".join(f"{name}={value}" for name, value in flat(self.settings).items() if name in told)


def planned(options: argparse.Namespace) -> list[Run]:
    """The runs that the command line asks for; every setting is checked before the first one starts."""
    varied = parse_varied(options.vary)
    refuse_decided([name for name, _ in varied] + [text.partition("=")[0] for text in options.set])
    unknown = [name for name in options.stages.split(",") if name not in STAGE_SETS]
    if unknown:
        raise ConfigError(f"--stages has '{unknown[0]}'; it takes {', '.join(STAGE_SETS)}, comma-separated.")
    stages = [STAGE_SETS[name] for name in options.stages.split(",")]
    all_settings = combinations(common_settings(options), [*varied, ("stages", stages)])
    return [
        Run(CONCEPTS[name], changed(settings, "loop.seed", str(seed)))
        for name, seed, settings in product(options.concepts, options.seeds, all_settings)
    ]


def combinations(settings: Settings, varied: Sequence[tuple[str, Sequence[str]]]) -> list[Settings]:
    """The settings with every combination of the varied fields' values, the last field varying fastest."""
    found = []
    for values in product(*(values for _, values in varied)):
        combined = settings
        for (name, _), value in zip(varied, values, strict=True):
            combined = changed(combined, name, value)
        found.append(combined)
    return list(dict.fromkeys(found))


def parse_varied(texts: Iterable[str]) -> list[tuple[str, list[str]]]:
    """FIELD=VALUE,VALUE,... as names and values."""
    varied = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise ConfigError(f"'{text}' must have the form FIELD=VALUE,VALUE,..., for example adapter.rank=4,16.")
        varied.append((name, values.split(",")))
    return varied


def refuse_decided(names: Iterable[str]) -> None:
    """ConfigError for a setting that has an argument of its own."""
    for name in names:
        if name in DECIDED:
            raise ConfigError(f"{name} is decided by {DECIDED[name]}: set it there.")

"""What a reader of one trainer's files gives: the options of each training, and those of the datasets that they share."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..settings.stage import Stage
from .answers import SetupOption


@dataclass
class Training:
    """One training: a command line, or a configuration. Wan 2.2 A14B may have one for each expert."""

    given: list[SetupOption]
    stage: Stage | None = None  # None: all models of the family, with the same settings
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """All files of a setup."""

    family: str  # a key of FAMILIES, or what else was named
    trainings: list[Training]
    shared: list[SetupOption] = field(default_factory=list)
    num_datasets: int = 1
    notes: list[str] = field(default_factory=list)
    family_problem: str = ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of every value in tables inside each other: ("process[0].train.lr", 1e-4).

    A list of plain values is one value, and so is what is empty.
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def with_defaults(
    given: Sequence[SetupOption], defaults: Mapping[str, Any], dataset: int | None = None
) -> list[SetupOption]:
    """The options, and behind them what the trainer takes for those that are not there."""
    known = {item.key for item in given if item.dataset in (None, dataset)}
    return [
        *given,
        *(
            SetupOption(key=key, name=key, value=value, dataset=dataset)
            for key, value in defaults.items()
            if key not in known
        ),
    ]


def number_in(path: str, word: str) -> int | None:
    """The index behind a word: 2 of "datasets[2].repeats" for "datasets"."""
    found = re.search(rf"\b{re.escape(word)}\[(\d+)\]", path)
    return int(found.group(1)) if found else None

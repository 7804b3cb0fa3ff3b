"""What every campaign is: many tries that are made to go wrong, and a count of what did not hold."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("kills", "disk", "damage", "fuzz", "jobs", "workflows", "soak", "page", "grids", "gpu")


@dataclass
class Report:
    """What came of a campaign."""

    tries: int = 0
    failures: list[str] = field(default_factory=list)  # a sentence each: which try, what should have been, what was
    facts: dict[str, str | int | float] = field(default_factory=dict)  # worth telling besides: counts, peaks

    def check(self, holds: bool, failure: str) -> None:
        """Note `failure` unless `holds`."""
        if not holds:
            self.failures.append(failure)


@dataclass(frozen=True)
class Campaign:
    """`attack(tries, seed, place)` makes `tries` tries in the empty folder `place`; the same seed makes the same ones."""

    attack: Callable[[int, int, Path], Report]
    short: int  # tries of the form that runs with the tests
    long: int  # tries of the form that is run by hand
    needs_host: bool = False  # a ComfyUI, found as the tests find it


def load(name: str) -> Campaign:
    """The campaign of the module `name` in this folder, which calls it CAMPAIGN."""
    return importlib.import_module(f"wan_train.tests.campaigns.{name}").CAMPAIGN

"""Grids: tests with many combinations, of which a run of all tests tries a part, and with each commit another one.

    @pytest.mark.grid(3)                    # about one of three
    @pytest.mark.parametrize("a", ...)
    @pytest.mark.parametrize("b", ...)

    @pytest.mark.grid(2, "resumed")         # of different tests under one name, likewise

Where a grid has several axes, each value of each is tried at least once. Whoever names a file or a test, or asks for what
failed before (`--lf`), gets all of it, and `--grids` or `run.py campaign grids` tries everything.
"""

import math
import random
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def seed_of(pack: Path) -> int:
    """A number that is another one with each commit; 0 where that is not known."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=8", "HEAD"], cwd=pack, capture_output=True, text=True, check=False
        )
        return int(done.stdout.strip() or "0", 16)
    except (OSError, ValueError):
        return 0


def is_whole_run(arguments: Iterable[str], keyword: str, pack: Path) -> bool:
    """Whether tests are run by folder, and none of them was asked for by its name."""
    return not keyword and all((pack / argument).is_dir() for argument in arguments)


def chosen(items: Sequence[Mapping[str, int]], share: int, draw: random.Random) -> list[int]:
    """Places of those to be tried, one of `share`: of each item the number of its value on each axis."""
    order = draw.sample(range(len(items)), len(items))
    axes = {tuple(item[name] for item in items) for name in (items[0] if items else ())}
    axes = {axis for axis in axes if len(set(axis)) > 1}
    taken: list[int] = []
    if len(axes) > 1:
        seen: set[tuple[int, int]] = set()
        for place in order:
            new = {(number, axis[place]) for number, axis in enumerate(sorted(axes))} - seen
            if new:
                taken.append(place)
                seen |= new
    rest = [place for place in order if place not in taken]
    return sorted(taken + rest[: max(0, math.ceil(len(items) / share) - len(taken))])


def sift(items: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Of all tests those that are tried, and those that are left out this time."""
    grids: dict[tuple[str, str], list[Any]] = {}
    for item in items:
        mark = item.get_closest_marker("grid")
        if mark is None:
            continue
        share, *names = mark.args
        if names:
            grids.setdefault((names[0], str(share)), []).append(item)
        elif hasattr(item, "callspec"):
            grids.setdefault((item.nodeid.partition("[")[0], str(share)), []).append(item)
    left_out: set[int] = set()
    for (name, share), grid in grids.items():
        is_one = len({item.nodeid.partition("[")[0] for item in grid}) == 1 and hasattr(grid[0], "callspec")
        places = [dict(item.callspec.indices) if is_one else {"test": place} for place, item in enumerate(grid)]
        kept = set(chosen(places, int(share), random.Random(f"{seed} {name}")))
        left_out |= {id(item) for place, item in enumerate(grid) if place not in kept}
    return [item for item in items if id(item) not in left_out], [item for item in items if id(item) in left_out]

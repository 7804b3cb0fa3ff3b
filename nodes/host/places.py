"""Where the pack keeps its files in the host's folders, and which files of its outputs are still there."""

from collections.abc import Iterable
from pathlib import Path

import folder_paths

_produced: set[Path] = set()


def work_path() -> Path:
    """Where runs and caches live: `wan_train` in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "wan_train"


def runs_path() -> Path:
    """Run folders."""
    return work_path() / "runs"


def cache_path() -> Path:
    """Content-addressed latents and text embeddings."""
    return work_path() / "cache"


# Freshness: the host caches our handles, but the files behind them can be deleted by the user.


def remember(paths: Iterable[Path]) -> None:
    """Note files that node outputs point to."""
    _produced.update(paths)


def vanished() -> int:
    """How many remembered files are gone; part of node fingerprints, so that a deletion makes the nodes run again."""
    return sum(not path.exists() for path in _produced)

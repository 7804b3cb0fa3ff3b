"""Where the pack keeps its files in the host's folders, and which files of its outputs are still there."""

from collections.abc import Iterable
from pathlib import Path

import folder_paths

_produced: set[Path] = set()
_unfinished = 0  # how often a node gave less than its run would have become


def work_path() -> Path:
    """Where runs and caches live: `wan_train` in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "wan_train"


def runs_path() -> Path:
    """Run folders."""
    return work_path() / "runs"


def cache_path() -> Path:
    """Content-addressed latents and text embeddings."""
    return work_path() / "cache"


def reports_path() -> Path:
    """What nodes have reported."""
    return work_path() / "reports"


# Freshness: the host caches our handles, but the files behind them can be deleted by the user.


def remember(paths: Iterable[Path]) -> None:
    """Note files that node outputs point to."""
    _produced.update(paths)


def note_unfinished() -> None:
    """A node's output is of a run that can go on: queued again, it shall not come from the host's cache."""
    global _unfinished
    _unfinished += 1


def vanished() -> int:
    """How many outputs are no longer what their nodes would give; part of fingerprints, so that the nodes run again.

    Those are remembered files that are gone, and LoRAs of runs that can go on.
    """
    return _unfinished + sum(not path.exists() for path in _produced)

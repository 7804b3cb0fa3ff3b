"""Differences of two ways that had the same clips, noise and prompts, taken pair by pair."""

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

SURE = 3.0  # standard errors: a difference that is larger is no chance


@dataclass(frozen=True)
class Paired:
    """A mean difference, and how far chance may move it."""

    mean: float
    error: float | None  # the standard error; None for a single pair
    count: int

    @property
    def mark(self) -> str:
        """▲ or ▼ where it is more than SURE standard errors, else nothing."""
        if self.error is None or abs(self.mean) <= SURE * self.error:
            return ""
        return "▲" if self.mean > 0 else "▼"

    def __str__(self) -> str:
        """In points: +11 ± 2 ▲."""
        error = "" if self.error is None else f" ± {100 * self.error:.0f}"
        return f"{round(100 * self.mean):+d}{error} {self.mark}".rstrip()


def paired(mine: Mapping[Hashable, float], others: Mapping[Hashable, float]) -> Paired | None:
    """Mine less the others', where both have the same key; None where they have none in common."""
    gaps = [value - others[key] for key, value in mine.items() if key in others]
    if not gaps:
        return None
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
    return Paired(statistics.fmean(gaps), error, len(gaps))

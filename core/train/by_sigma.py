"""The losses of a run by noise level: each sample's in its bin of sigma (facts.SIGMA_BINS), as the diary's steps tell them."""

import itertools
import math
from array import array
from bisect import bisect_right
from typing import Any

import numpy as np

from ..facts import SIGMA_BINS
from .events import Event
from .thinning import MAX_POINTS, Drawn, drawn

_MOST_SAMPLES = 2**31  # of a step
MAX_GROUPS = 5  # curves that one can still tell apart


class LossesBySigma:
    """Mean loss of each bin that a step had samples in, about 21 bytes each.

    Diaries from before bins were written have the mean sigma of a step alone: its loss is put there, and counted.
    """

    def __init__(self) -> None:
        self.num_means = 0  # steps of which only the mean sigma is known
        self._steps, self._bins, self._losses, self._counts = array("q"), array("b"), array("d"), array("i")

    def add(self, event: Event) -> None:
        """Take in an event of a step. What is no bin with a loss is passed over."""
        step = int(event["step"])
        if self._steps and step <= self._steps[-1]:
            self.cut(step - 1)
        found = event.get("bins")
        if found is None and event.get("sigma") is not None:
            found = [[_bin_of(float(event["sigma"])), event["loss"], 1]]
            self.num_means += 1
        for entry in found or ():
            if _is_entry(entry):
                self._steps.append(step)
                self._bins.append(entry[0])
                self._losses.append(float(entry[1]))
                self._counts.append(entry[2])

    def cut(self, step: int) -> None:
        """Forget what comes after `step`."""
        end = bisect_right(self._steps, step)
        del self._steps[end:], self._bins[end:], self._losses[end:], self._counts[end:]

    def drawn(
        self,
        bins: tuple[int, int],
        window: float,
        *,
        first: int | None = None,
        last: int | None = None,
        most: int = MAX_POINTS,
    ) -> Drawn:
        """What a chart shows of the bins from the first to before the second; see `thinning.drawn`."""
        return drawn(*self.means(bins), window, first=first, last=last, most=most)

    def means(self, bins: tuple[int, int]) -> tuple[list[int], list[float]]:
        """The steps with samples in the bins from the first to before the second, and the mean loss of these samples."""
        of_bins = np.array(self._bins, dtype=np.int8)
        places = np.flatnonzero((of_bins >= bins[0]) & (of_bins < bins[1]))
        steps, starts = np.unique(np.array(self._steps, dtype=np.int64)[places], return_index=True)
        if not len(steps):
            return [], []
        counts = np.array(self._counts, dtype=np.float64)[places]
        sums = np.add.reduceat(np.array(self._losses)[places] * counts, starts)
        return steps.tolist(), (sums / np.add.reduceat(counts, starts)).tolist()


def groups_of_window(low: float, high: float) -> list[tuple[int, int]]:
    """At most MAX_GROUPS runs of bins (first, end), nearly alike in width, which cover the sigmas from `low` to `high`."""
    first, end = math.floor(low * SIGMA_BINS + 1e-6), math.ceil(high * SIGMA_BINS - 1e-6)
    count = max(1, min(MAX_GROUPS, end - first))
    edges = [first + round((end - first) * i / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _bin_of(sigma: float) -> int:
    return min(max(int(sigma * SIGMA_BINS), 0), SIGMA_BINS - 1) if math.isfinite(sigma) else 0


def _is_entry(entry: Any) -> bool:
    """Whether it is [bin, mean loss, samples]."""
    if not isinstance(entry, list) or len(entry) != 3 or any(isinstance(part, bool) for part in entry):
        return False
    place, loss, count = entry
    is_bin = isinstance(place, int) and 0 <= place < SIGMA_BINS
    return is_bin and isinstance(loss, (int, float)) and isinstance(count, int) and 0 < count < _MOST_SAMPLES

"""What a chart of a thousand columns can show of a curve of any length: every peak, and averages over all points."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

MAX_POINTS = 2000  # of a thinned curve
Point = tuple[int, float]


@dataclass(frozen=True)
class Drawn:
    """A curve, thinned: (step, value), and the moving average at the same steps."""

    points: list[Point]
    averages: list[Point]


def drawn(
    steps: Sequence[int],
    values: Sequence[float],
    window: float,
    *,
    first: int | None = None,
    last: int | None = None,
    most: int = MAX_POINTS,
) -> Drawn:
    """The finite ones of `values` at ascending `steps`, from `first` to `last`; averages are over `window` values, and know
    what came before `first`."""
    begin = 0 if first is None else bisect_left(steps, first)
    end = len(steps) if last is None else bisect_right(steps, last)
    kept = _kept(np.array(values[begin:end], dtype=np.float64), most)  # a copy: what others look into could not grow
    points = [(int(steps[begin + i]), float(values[begin + i])) for i in kept]
    if window <= 1:
        return Drawn(points, points)
    means = averages(values[:end], window)
    return Drawn(points, [(int(steps[begin + i]), means[begin + i]) for i in kept])


def averages(values: Sequence[float], window: float) -> "array[float]":
    """The exponential moving average that looks back over about `window` values, with Adam's correction for its start.

    As `smooth` in web/curve.js. What is not finite is passed over.
    """
    beta = 1 - 1 / window
    finite = (value if math.isfinite(value) else None for value in values)
    means = accumulate(
        finite, lambda mean, value: mean if value is None else beta * mean + (1 - beta) * value, initial=0.0
    )
    next(means)
    return array("d", (mean / (1 - beta ** (i + 1)) for i, mean in enumerate(means)))


def _kept(values: np.ndarray, most: int) -> list[int]:
    """Places of the ends, and of the lowest and the highest of equal pieces between."""
    places = np.flatnonzero(np.isfinite(values))
    if len(places) <= most:
        return places.tolist()
    pieces = np.array_split(places[1:-1], (most - 2) // 2)
    kept = {int(places[0]), int(places[-1])}
    for piece in pieces:
        kept |= {int(piece[values[piece].argmin()]), int(piece[values[piece].argmax()])}
    return sorted(kept)

"""A drawn curve as text: "0:1, 0.5:2, 1:0.2" are points (place, height), joined by straight lines."""

import itertools
import math

from ..errors import ConfigError
from ..paths import shown

FLAT = "0:1, 1:1"
MAX_POINTS = 256
_MAX_LENGTH = 64 * MAX_POINTS

CurvePoints = tuple[tuple[float, float], ...]


def read_curve(text: str) -> CurvePoints:
    """Points of a curve over [0, 1], in the order of their places; the ends are continued evenly to 0 and 1.

    ConfigError for what is no such curve: places outside [0, 1] or twice, heights below 0, nothing above 0.
    """
    if len(text) > _MAX_LENGTH or text.count(",") >= MAX_POINTS:
        raise ConfigError(f"timestep_curve has more than {MAX_POINTS} points: give fewer.")
    points = sorted(_point(part) for part in text.split(",") if part.strip())
    places = [place for place, _ in points]
    if not points or len(set(places)) < len(places):
        what = "has no point" if not points else "has two points at the same noise level"
        raise ConfigError(f"timestep_curve {what}: give points such as {FLAT}.")
    if not any(height > 0 for _, height in points):
        raise ConfigError("timestep_curve is 0 everywhere, so that nothing would be trained: raise a point.")
    first = [(0.0, points[0][1])] if places[0] > 0 else []
    last = [(1.0, points[-1][1])] if places[-1] < 1 else []
    return (*first, *points, *last)


def is_zero_between(points: CurvePoints, low: float, high: float) -> bool:
    """Whether a curve is 0 all the way from `low` to `high`."""
    pairs = itertools.pairwise(points)
    return not any(x1 > low and x0 < high and (y0 > 0 or y1 > 0) for (x0, y0), (x1, y1) in pairs)


def write_curve(points: CurvePoints) -> str:
    """The text of a curve, six digits a number."""
    return ", ".join(f"{place:.6g}:{height:.6g}" for place, height in points)


def _point(part: str) -> tuple[float, float]:
    try:
        place, height = (float(number) for number in part.split(":"))
    except ValueError:
        raise ConfigError(
            f"timestep_curve has '{shown(part.strip()[:80])}', which is no point: write a noise level from 0 to 1, a colon and"
            f" a height, such as {FLAT}."
        ) from None
    if not 0 <= place <= 1:
        raise ConfigError(f"timestep_curve has a point at {place:g}: noise levels go from 0 (clean) to 1 (noise).")
    if not 0 <= height <= 1e6 or not math.isfinite(height):
        raise ConfigError(f"timestep_curve has the height {height:g} at {place:g}: heights go from 0 to 1,000,000.")
    return place, height

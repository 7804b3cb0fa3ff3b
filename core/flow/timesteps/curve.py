"""A density that a person draws: straight lines between points. Its cumulative distribution is quadratic in each piece."""

import functools
import itertools
import math

import torch
from torch import Tensor

from ...settings.curve import CurvePoints, read_curve
from ...settings.timesteps import TimestepOptions
from . import TimestepSampling


@functools.lru_cache(maxsize=16)
def _pieces(text: str) -> tuple[CurvePoints, tuple[float, ...]]:
    """The points, with heights such that the density is 1 in all; and F at each of them."""
    points = read_curve(text)
    areas = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)]
    whole = math.fsum(areas)
    shares = [min(1.0, share / whole) for share in itertools.accumulate(areas, initial=0.0)]
    return tuple((x, y / whole) for x, y in points), (*shares[:-1], 1.0)


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    points, shares = _pieces(options.curve)
    at = torch.tensor(points, dtype=torch.float64)
    below = torch.tensor(shares, dtype=torch.float64)
    piece = (torch.searchsorted(below, u.contiguous()) - 1).clamp(0, len(points) - 2)
    x, y = at[piece, 0], at[piece, 1]
    slope = (at[piece + 1, 1] - y) / (at[piece + 1, 0] - x)
    area = u - below[piece]
    root = torch.sqrt((y * y + 2 * slope * area).clamp(min=0))
    # The root of slope/2 d^2 + y d = area in the form that neither a flat piece nor one that begins at 0 divides by zero.
    step = 2 * area / (y + root).clamp(min=1e-300)
    return torch.minimum(x + step, at[piece + 1, 0])


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    points, shares = _pieces(options.curve)
    for ((x0, y0), (x1, y1)), share in zip(itertools.pairwise(points), shares, strict=False):
        if sigma <= x1:
            height = y0 + (y1 - y0) * (sigma - x0) / (x1 - x0)
            return min(1.0, share + (sigma - x0) * (y0 + height) / 2)
    return 1.0


METHOD = TimestepSampling(
    help="as you draw it in timestep_curve",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("curve",),
)

"""Beta distribution: SimpleTuner's flow_use_beta_schedule without a shift (models/common.py, bc8e6ab)."""

import functools
import math

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling
from ._table import Table

_TERMS = 400  # of the continued fraction; it needs about the square root of the larger number
_TINY = 1e-300


def incomplete_beta(x: Tensor, a: float, b: float, terms: int = _TERMS) -> Tensor:
    """The regularised incomplete beta function I_x(a, b) of x [K] in (0, 1), float64.

    By the continued fraction of DLMF 8.17.22, evaluated as Lentz does, on the side of the mean where it converges fast.
    """
    swap = x > (a + 1) / (a + b + 2)
    first, second = torch.full_like(x, a), torch.full_like(x, b)
    p, q = torch.where(swap, second, first), torch.where(swap, first, second)
    x = torch.where(swap, 1 - x, x)
    front = torch.exp(p * x.log() + q * torch.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / p
    c = torch.ones_like(x)
    d = 1 / _away(1 - (p + q) * x / (p + 1))
    fraction = d
    for m in range(1, terms):
        even = m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            fraction = fraction * d * c
    return torch.where(swap, 1 - front * fraction, front * fraction)


def _away(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _TINY, _TINY, x)


@functools.lru_cache(maxsize=16)
def _table(a: float, b: float) -> Table:
    return Table.of(lambda sigmas: incomplete_beta(sigmas, a, b))


def quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    """Uniform u in [0, 1], any shape, to sigma."""
    return _table(options.beta_a, options.beta_b).quantile(u)


def cumulative(sigma: float, options: TimestepOptions) -> float:
    """The inverse of `quantile`."""
    return _table(options.beta_a, options.beta_b).cumulative(sigma)


METHOD = TimestepSampling(
    help="a hill whose form and place come from timestep_beta_a and timestep_beta_b",
    quantile=quantile,
    cumulative=cumulative,
    uses=("beta_a", "beta_b"),
)

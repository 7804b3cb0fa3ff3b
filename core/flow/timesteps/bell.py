"""A bell over the noise levels, nothing at both ends: AI-Toolkit's linear_timesteps as a density, not as a weight.

The density is exp(-2 (sigma - 1/2)^2) - exp(-1/2), made 1 in all (toolkit/samplers/custom_flowmatch_sampler.py, 27a03a9).
"""

import functools
import math

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling
from ._table import Table


def _raw(sigma: Tensor) -> Tensor:
    """The integral of the bell from 1/2 to sigma."""
    x = sigma - 0.5
    return math.sqrt(math.pi / 8) * torch.erf(math.sqrt(2) * x) - math.exp(-0.5) * x


@functools.cache
def _table() -> Table:
    whole = 2 * float(_raw(torch.tensor(1.0, dtype=torch.float64)))
    return Table.of(lambda sigmas: 0.5 + _raw(sigmas) / whole)


def _quantile(u: Tensor, _options: TimestepOptions) -> Tensor:
    return _table().quantile(u)


def _cumulative(sigma: float, _options: TimestepOptions) -> float:
    return _table().cumulative(sigma)


METHOD = TimestepSampling(
    help="a wide bell over the noise levels, which falls to nothing at both ends",
    quantile=_quantile,
    cumulative=_cumulative,
)

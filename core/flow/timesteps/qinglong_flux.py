"""Qinglong's mixture for Flux: 79 % flux_shift, 11 % logsnr, 10 % nearly clean (musubi-tuner, trainer_base.py, 30c658c)."""

import functools

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling, flux_shift
from ._mixture import CLEAN, qinglong
from ._table import Table


@functools.lru_cache(maxsize=64)
def _table(options: TimestepOptions) -> Table:
    return qinglong(options, [(0.11, options.logsnr_mean, options.logsnr_std), (0.10, *CLEAN)])


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return _table(options).quantile(u)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    return _table(options).cumulative(sigma)


METHOD = TimestepSampling(
    help="79 % flux_shift, 11 % logsnr, and 10 % nearly clean",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("sigmoid_scale", "logsnr_mean", "logsnr_std"),
    at_size=flux_shift.at_size,
)

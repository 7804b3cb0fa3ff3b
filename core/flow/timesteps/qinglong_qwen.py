"""Qinglong's mixture for Qwen-Image: 95 % qwen_shift, 5 % nearly clean (musubi-tuner, trainer_base.py, 30c658c)."""

import functools

from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling, qwen_shift
from ._mixture import CLEAN, qinglong
from ._table import Table


@functools.lru_cache(maxsize=64)
def _table(options: TimestepOptions) -> Table:
    return qinglong(options, [(0.05, *CLEAN)])


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return _table(options).quantile(u)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    return _table(options).cumulative(sigma)


METHOD = TimestepSampling(
    help="95 % qwen_shift, and 5 % nearly clean",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("sigmoid_scale",),
    at_size=qwen_shift.at_size,
)

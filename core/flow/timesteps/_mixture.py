"""Several distributions, one of which is drawn each time: the cumulative distribution is their mean, by share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import logsnr
from ._table import Table

# Mean and standard deviation of the logarithm of signal to noise of the nearly clean part of Qinglong's mixtures.
CLEAN = (5.36, 1.0)


def qinglong(options: TimestepOptions, parts: Sequence[tuple[float, float, float]]) -> Table:
    """The shifted sigmoid, and beside it `parts`: share, mean and standard deviation of the logarithm of signal to noise.

    A shifted logit-normal is a logit-normal with another mean, and so is a normal logarithm of signal to noise.
    """
    rest = 1 - sum(share for share, _, _ in parts)
    moved = -2 * math.log(options.shift)
    everything = [(rest, moved, 2 * options.sigmoid_scale), *parts]

    def cumulative(sigmas: Tensor) -> Tensor:
        return sum((s * logsnr.cumulative(sigmas, m, d) for s, m, d in everything), start=torch.zeros_like(sigmas))

    return Table.of(cumulative)

"""Logit-normal: the logit of sigma is normal with mean 0 (Esser et al., 2024, arXiv:2403.03206, section 3.1)."""

import math

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling


def quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    """Uniform u in [0, 1], any shape, to sigma; `sigmoid_scale` is the standard deviation of the logit."""
    return torch.sigmoid(options.sigmoid_scale * torch.special.ndtri(u))


def cumulative(sigma: float, options: TimestepOptions) -> float:
    """The inverse of `quantile`."""
    if sigma in (0.0, 1.0):
        return sigma
    logit = math.log(sigma / (1 - sigma)) / options.sigmoid_scale
    return 0.5 * (1 + math.erf(logit / math.sqrt(2)))


METHOD = TimestepSampling(
    help="mostly the middle noise levels, the more so the smaller sigmoid_scale is",
    quantile=quantile,
    cumulative=cumulative,
    uses=("sigmoid_scale",),
)

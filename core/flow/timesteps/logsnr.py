"""Normal logarithm of signal to noise (arXiv:2411.14793): musubi-tuner's logsnr, sigma = sigmoid(-logsnr / 2)."""

import math

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling


def quantile(u: Tensor, mean: float, std: float) -> Tensor:
    """Uniform u in [0, 1], any shape, to sigma; `mean` and `std` of the logarithm of signal to noise."""
    return torch.sigmoid((std * torch.special.ndtri(u) - mean) / 2)


def cumulative(sigma: Tensor, mean: float, std: float) -> Tensor:
    """The inverse of `quantile`, any shape, float64."""
    return torch.special.ndtr((2 * torch.logit(sigma) + mean) / std)


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    return quantile(u, options.logsnr_mean, options.logsnr_std)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    if sigma in (0.0, 1.0):
        return sigma
    logit = math.log(sigma / (1 - sigma))
    return 0.5 * (1 + math.erf((2 * logit + options.logsnr_mean) / options.logsnr_std / math.sqrt(2)))


METHOD = TimestepSampling(
    help="a bell over the logarithm of signal to noise, for styles: see logsnr_mean and logsnr_std",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("logsnr_mean", "logsnr_std"),
)

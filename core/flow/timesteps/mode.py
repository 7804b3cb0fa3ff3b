"""Mode sampling with heavy tails (Esser et al., 2024, arXiv:2403.03206, section 3.1): musubi-tuner's weighting_scheme mode."""

import math

import torch
from torch import Tensor

from ...settings.timesteps import TimestepOptions
from . import TimestepSampling

_HALVINGS = 60  # of [0, 1]: to the last bit of float64


def _quantile(u: Tensor, options: TimestepOptions) -> Tensor:
    # The paper's f(1 - u), which rises; the distribution is symmetric, so that it is the same.
    return u - options.mode_scale * (torch.sin(math.pi / 2 * u).square() - u)


def _cumulative(sigma: float, options: TimestepOptions) -> float:
    if sigma in (0.0, 1.0):
        return sigma
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = middle - options.mode_scale * (math.sin(math.pi / 2 * middle) ** 2 - middle)
        low, high = (middle, high) if reached < sigma else (low, middle)
    return (low + high) / 2


METHOD = TimestepSampling(
    help="mostly the middle noise levels but all of the others, too, as Stable Diffusion 3 tried; see timestep_mode_scale",
    quantile=_quantile,
    cumulative=_cumulative,
    uses=("mode_scale",),
)

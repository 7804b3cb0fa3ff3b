"""AI-Toolkit's bell over the noise levels (toolkit/samplers/custom_flowmatch_sampler.py, 27a03a9)."""

import math

import torch
from torch import Tensor

# It makes the mean over its table of 1000 levels 1, after subtracting the least value, which is that at pure noise.
_LEAST = math.exp(-0.5)
_MEAN = math.fsum(math.exp(-2 * (i / 1000 - 0.5) ** 2) - _LEAST for i in range(1000)) / 1000
TOP = (1 - _LEAST) / _MEAN


def bell(sigmas: Tensor) -> Tensor:
    """exp(-2 (1/2 - sigma)^2) less its value at the ends, with a mean of 1; sigmas [B] -> [B]."""
    return (torch.exp(-2 * (0.5 - sigmas) ** 2) - _LEAST).clamp(min=0) / _MEAN

"""Closer together at both ends: levels by the quantiles of a beta distribution (arXiv:2407.12173).

Sigmas that fall together, where there are hundreds of steps, are left out.
"""

import functools

import torch
from torch import Tensor

from ...facts import NUM_TIMESTEPS
from ...flow.timesteps.beta import incomplete_beta
from . import Scheduler
from ._levels import levels

_BETA = 0.6  # both parameters of the distribution
_HALVINGS = 60
_TERMS = 40  # of the distribution's function, which for parameters as small as these is exact after ten


def _sigmas(steps: int, shift: float) -> Tensor:
    picked = list(dict.fromkeys(_numbers(steps)))
    return torch.cat([levels(shift)[picked], torch.zeros(1)])


@functools.lru_cache(maxsize=16)
def _numbers(steps: int) -> tuple[int, ...]:
    """Numbers of levels, the highest first; found by halving, as the distribution's function only rises."""
    wanted = 1 - torch.arange(steps, dtype=torch.float64) / steps
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = incomplete_beta(middle, _BETA, _BETA, _TERMS) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    numbers = torch.round(high * (NUM_TIMESTEPS - 1), decimals=9)  # the middle is a half exactly
    return tuple(int(number) for number in torch.round(numbers).tolist())


METHOD = Scheduler(help="closer together at both ends", sigmas=_sigmas)

"""Timesteps at even distances down to the lowest level, and then 0."""

import math

import torch
from torch import Tensor

from . import Scheduler
from ._levels import at_timesteps, ends


def _sigmas(steps: int, shift: float) -> Tensor:
    start, end = ends(shift)
    is_zero = math.isclose(float(at_timesteps(torch.tensor([end]), shift)), 0, abs_tol=1e-5)
    sigmas = at_timesteps(torch.linspace(start, end, steps + is_zero), shift)
    return sigmas if is_zero else torch.cat([sigmas, torch.zeros(1)])


METHOD = Scheduler(help="evenly down to the lowest level, and a short last step", sigmas=_sigmas)

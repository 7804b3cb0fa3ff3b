"""Every so many levels, from the second one up; the highest is left out, and steps may be one or two more than asked for."""

import math

import torch
from torch import Tensor

from ...facts import NUM_TIMESTEPS
from . import Scheduler
from ._levels import levels


def _sigmas(steps: int, shift: float) -> Tensor:
    known = levels(shift)
    is_zero = math.isclose(float(known[1]), 0, abs_tol=1e-5)
    picked = known[1 :: max(NUM_TIMESTEPS // (steps + is_zero), 1)].flip(0)
    return picked if is_zero else torch.cat([picked, torch.zeros(1)])


METHOD = Scheduler(help="evenly from the lowest level up, at times with a few steps more", sigmas=_sigmas)

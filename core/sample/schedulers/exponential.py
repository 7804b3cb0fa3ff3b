"""Even distances of log(sigma), from the highest level to the lowest one."""

import math

import torch
from torch import Tensor

from . import Scheduler
from ._levels import levels


def _sigmas(steps: int, shift: float) -> Tensor:
    known = levels(shift)
    logs = torch.linspace(math.log(float(known[-1])), math.log(float(known[0])), steps)
    return torch.cat([logs.exp(), torch.zeros(1)])


METHOD = Scheduler(help="still more of them near the video than karras", sigmas=_sigmas)

"""Even distances of the seventh root of sigma (Karras et al. 2022, arXiv:2206.00364, equation 5)."""

import torch
from torch import Tensor

from . import Scheduler
from ._levels import levels

_RHO = 7.0


def _sigmas(steps: int, shift: float) -> Tensor:
    known = levels(shift)
    lowest, highest = float(known[0]) ** (1 / _RHO), float(known[-1]) ** (1 / _RHO)
    roots = highest + torch.linspace(0, 1, steps) * (lowest - highest)
    return torch.cat([roots**_RHO, torch.zeros(1)])


METHOD = Scheduler(help="most steps near the video: few are left for the high noise expert", sigmas=_sigmas)

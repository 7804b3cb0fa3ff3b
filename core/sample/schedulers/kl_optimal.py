"""Even distances of the arc tangent (Align Your Steps, Sabour et al. 2024, arXiv:2404.14507, theorem 3.1)."""

import math

import torch
from torch import Tensor

from . import Scheduler
from ._levels import levels


def _sigmas(steps: int, shift: float) -> Tensor:
    known = levels(shift)
    lowest, highest = float(known[0]), float(known[-1])
    shares = torch.arange(steps, dtype=torch.float32) / max(steps - 1, 1)  # of one step the host makes none: 0 / 0
    angles = shares * math.atan(lowest) + (1 - shares) * math.atan(highest)
    return torch.cat([angles.tan(), torch.zeros(1)])


METHOD = Scheduler(help="closer together near the video, whatever the shift", sigmas=_sigmas)

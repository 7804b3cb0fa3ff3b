"""Timesteps at even distances, of which 0 is the last."""

import torch
from torch import Tensor

from . import Scheduler
from ._levels import at_timesteps, ends


def _sigmas(steps: int, shift: float) -> Tensor:
    timesteps = torch.linspace(*ends(shift), steps + 1)[:-1]
    return torch.cat([at_timesteps(timesteps, shift), torch.zeros(1)])


METHOD = Scheduler(help="evenly, nearly as simple", sigmas=_sigmas)

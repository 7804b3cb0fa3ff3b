"""Levels at even distances."""

import torch
from torch import Tensor

from ...facts import NUM_TIMESTEPS
from . import Scheduler
from ._levels import levels


def _sigmas(steps: int, shift: float) -> Tensor:
    stride = NUM_TIMESTEPS / steps
    picked = [NUM_TIMESTEPS - 1 - int(step * stride) for step in range(steps)]
    return torch.cat([levels(shift)[picked], torch.zeros(1)])


METHOD = Scheduler(help="evenly, what ComfyUI's templates for Wan have", sigmas=_sigmas)

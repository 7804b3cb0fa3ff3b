"""The levels of noise that a model of a flow is trained at."""

import torch
from torch import Tensor

from ...facts import NUM_TIMESTEPS
from ...flow.shifts import shift_sigma


def levels(shift: float) -> Tensor:
    """Every level, from data to noise, [1000] float32."""
    return shift_sigma(torch.arange(1, NUM_TIMESTEPS + 1) / NUM_TIMESTEPS, shift)


def at_timesteps(timesteps: Tensor, shift: float) -> Tensor:
    """The sigmas of timesteps before the shift, [N] float32."""
    return torch.stack([shift_sigma(timestep / NUM_TIMESTEPS, shift) for timestep in timesteps])


def ends(shift: float) -> tuple[float, float]:
    """The timesteps of the highest and of the lowest level, which are shifted once more: the host has it so."""
    known = levels(shift)
    return float(known[-1] * NUM_TIMESTEPS), float(known[0] * NUM_TIMESTEPS)

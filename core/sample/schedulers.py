"""How the sigmas of a sampling are spaced, as ComfyUI's schedulers of the same names have them (comfy/samplers.py)."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..facts import NUM_TIMESTEPS
from ..flow.shifts import shift_sigma
from ..flow.timesteps.beta import incomplete_beta

Scheduler = Literal["simple", "normal", "beta"]

_BETA = 0.6  # both parameters of the distribution (arXiv:2407.12173)
_HALVINGS = 60
_TERMS = 40  # of the distribution's function, which for parameters as small as these is exact after ten


def _levels(shift: float) -> Tensor:
    """Every level of noise, from data to noise, [1000] float32."""
    return shift_sigma(torch.arange(1, NUM_TIMESTEPS + 1) / NUM_TIMESTEPS, shift)


def simple(steps: int, shift: float) -> Tensor:
    """Levels at even distances, [steps + 1]."""
    levels, stride = _levels(shift), NUM_TIMESTEPS / steps
    picked = [NUM_TIMESTEPS - 1 - int(step * stride) for step in range(steps)]
    return torch.cat([levels[picked], torch.zeros(1)])


def normal(steps: int, shift: float) -> Tensor:
    """Timesteps at even distances down to the lowest level, and then 0, [steps + 1]."""
    levels = _levels(shift)
    start, end = levels[-1] * NUM_TIMESTEPS, levels[0] * NUM_TIMESTEPS
    is_zero = math.isclose(float(shift_sigma(end / NUM_TIMESTEPS, shift)), 0, abs_tol=1e-5)
    timesteps = torch.linspace(float(start), float(end), steps + is_zero)
    sigmas = torch.stack([shift_sigma(timestep / NUM_TIMESTEPS, shift) for timestep in timesteps])
    return sigmas if is_zero else torch.cat([sigmas, torch.zeros(1)])


def beta(steps: int, shift: float) -> Tensor:
    """Closer together at both ends: levels by the quantiles of a beta distribution, [up to steps + 1]."""
    picked = list(dict.fromkeys(_beta_levels(steps)))
    return torch.cat([_levels(shift)[picked], torch.zeros(1)])


@functools.lru_cache(maxsize=16)
def _beta_levels(steps: int) -> tuple[int, ...]:
    """Numbers of levels, the highest first; found by halving, as the distribution's function only rises."""
    wanted = 1 - torch.arange(steps, dtype=torch.float64) / steps
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = incomplete_beta(middle, _BETA, _BETA, _TERMS) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    levels = torch.round(high * (NUM_TIMESTEPS - 1), decimals=9)  # the middle is a half exactly
    return tuple(int(level) for level in torch.round(levels).tolist())


SCHEDULERS: Mapping[Scheduler, Callable[[int, float], Tensor]] = {"simple": simple, "normal": normal, "beta": beta}

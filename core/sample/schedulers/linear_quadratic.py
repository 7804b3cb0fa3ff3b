"""Half of the steps in the first 2.5 % of the way, and then ever longer ones: that of Mochi (genmoai/models, infer.py)."""

import torch
from torch import Tensor

from . import Scheduler
from ._levels import levels

_THRESHOLD = 0.025


def _sigmas(steps: int, shift: float) -> Tensor:
    return torch.tensor([1.0 - share for share in _shares(steps)]) * levels(shift)[-1]


def _shares(steps: int) -> list[float]:
    """How much of the way is done before each step, and after the last one, [steps + 1]."""
    if steps == 1:
        return [0.0, 1.0]
    linear = steps // 2
    rest, gap = steps - linear, linear - _THRESHOLD * steps
    square = gap / (linear * rest**2)
    slope = _THRESHOLD / linear - 2 * gap / rest**2
    done = [step * _THRESHOLD / linear for step in range(linear)]
    done += [square * step**2 + slope * step + square * linear**2 for step in range(linear, steps)]
    return [*done, 1.0]


METHOD = Scheduler(help="half of the steps near noise, whatever the shift", sigmas=_sigmas)

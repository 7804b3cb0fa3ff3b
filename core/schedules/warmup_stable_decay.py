"""The full rate for most of the run, then half a cosine wave to the floor (WSD; Hu et al., 2024, arXiv:2404.06395)."""

import math

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(progress: float, options: ScheduleOptions) -> float:
    fallen = (progress - (1 - options.decay_share)) / options.decay_share
    return 0.5 * (1 + math.cos(math.pi * max(0.0, fallen)))


METHOD = Schedule(
    help="stays at the full rate, and falls in the last part, lr_decay_share", height=_height, uses=("decay_share",)
)

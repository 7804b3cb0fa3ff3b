"""Half a cosine wave, from the full learning rate to the floor (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""

import math

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(progress: float, _options: ScheduleOptions) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


METHOD = Schedule(help="falls slowly, then fast, then slowly", height=_height)

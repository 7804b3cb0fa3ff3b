"""Half a cosine wave, several times over, each from the full rate to the floor (SGDR; Loshchilov and Hutter, 2017,
arXiv:1608.03983), as transformers has it (cosine_with_hard_restarts).
"""

import math

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(progress: float, options: ScheduleOptions) -> float:
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (progress * options.cycles % 1.0)))


METHOD = Schedule(
    help="falls as cosine does, lr_cycles times, each time from the full rate", height=_height, uses=("cycles",)
)

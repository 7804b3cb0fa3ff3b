"""REX (Chen, Wolfe and Kyrillidis, 2021, arXiv:2107.04197): high for long, then fast to the floor.

Of the share z that is left of the run: z / (0.1 + 0.9 z), as musubi-tuner has it; the paper has 0.5 in both places.
"""

from ..settings.schedule import ScheduleOptions
from . import Schedule

_BEND = 0.9


def _height(progress: float, _options: ScheduleOptions) -> float:
    left = 1.0 - progress
    return left / (1 - _BEND + _BEND * left)


METHOD = Schedule(help="stays high for long, and falls fast at the end", height=_height)

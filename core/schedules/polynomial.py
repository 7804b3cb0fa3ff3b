"""A power of what is left of the run: 1 is the straight line, more falls faster at first."""

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(progress: float, options: ScheduleOptions) -> float:
    return (1.0 - progress) ** options.power


METHOD = Schedule(
    help="falls fast at first and slowly later, the more so the higher lr_power is", height=_height, uses=("power",)
)

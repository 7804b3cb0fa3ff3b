"""A straight line from the full learning rate to the floor."""

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(progress: float, _options: ScheduleOptions) -> float:
    return 1.0 - progress


METHOD = Schedule(help="falls evenly", height=_height)

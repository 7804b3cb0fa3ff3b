"""The full learning rate to the end."""

from ..settings.schedule import ScheduleOptions
from . import Schedule


def _height(_progress: float, _options: ScheduleOptions) -> float:
    return 1.0


METHOD = Schedule(help="stays at the full rate", height=_height)

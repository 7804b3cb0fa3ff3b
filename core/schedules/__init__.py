"""How the learning rate moves over a run: each file is one curve."""

from collections.abc import Callable
from dataclasses import dataclass

from ..methods import Methods
from ..settings.schedule import ScheduleOptions


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One curve, after the warm-up."""

    help: str  # a clause for tooltips and documents
    height: Callable[[float, ScheduleOptions], float]  # progress in [0, 1] -> 1 at the full rate, 0 at the floor
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not


SCHEDULES = Methods(Schedule, "schedule", "schedules")

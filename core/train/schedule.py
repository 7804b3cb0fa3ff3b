"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from ..schedules import SCHEDULES
from ..settings.schedule import ScheduleOptions


def learning_rate_scale(step: int, num_steps: int, options: ScheduleOptions) -> float:
    """Factor on the learning rate for the update number `step` (0 is the first) of `num_steps`."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, num_steps - options.warmup_steps)
    height = SCHEDULES.get(options.kind).height(min(1.0, progress), options)
    return options.floor + (1 - options.floor) * height

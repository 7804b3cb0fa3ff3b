"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from ..settings.schedule import ScheduleOptions


def learning_rate_scale(step: int, num_steps: int, options: ScheduleOptions) -> float:
    """Factor on the learning rate for the update number `step` (0 is the first) of `num_steps`."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.kind == "constant":
        return 1.0
    progress = (step - options.warmup_steps) / max(1, num_steps - options.warmup_steps)
    remaining = max(0.0, 1.0 - progress)
    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, progress))),
        "linear": remaining,
        "polynomial": remaining**options.power,
    }[options.kind]
    return options.floor + (1 - options.floor) * shape

"""How long a run is in steps and epochs, for what is said before it starts."""

import math
from collections.abc import Callable

from ..data.counting import Length, count_batches
from ..settings.job import DataSpec, Job
from ..settings.loop import LoopOptions


def run_length(data: DataSpec, loop: LoopOptions) -> Length:
    """The length of a run over these samples."""
    samples = ((sample.shape, sample.repeats) for sample in data.samples if not sample.held_out)
    return Length(
        batches=count_batches(samples, loop.batch_size, loop.token_budget or None),
        batch_size=loop.batch_size,
        accumulation=loop.gradient_accumulation,
        steps=loop.steps,
    )


def checkpoints_due(job: Job) -> Callable[[int], bool]:
    """Whether a checkpoint is due after so many updates: by steps or by epochs, and at the end."""
    every, steps = job.loop.checkpoint_every, job.loop.steps
    if not job.saving.every_epochs:
        return lambda step: step % every == 0 or step == steps
    length = job_length(job)
    batches = length.batches * job.saving.every_epochs

    def is_due(step: int) -> bool:
        """Whether this update used the last batch of such an epoch; the update may reach into the next."""
        used = step * length.accumulation
        return used // batches > (used - length.accumulation) // batches or step == steps

    return is_due


def checkpoints_made(job: Job) -> int:
    """How many checkpoints the whole run makes, at most."""
    if not job.saving.every_epochs:
        return math.ceil(job.loop.steps / job.loop.checkpoint_every)
    length = job_length(job)
    return max(1, min(job.loop.steps, math.ceil(length.epochs / job.saving.every_epochs)))


def job_length(job: Job) -> Length:
    """The length of a job's run."""
    return run_length(job.data, job.loop)

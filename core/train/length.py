"""How long a run is in steps and epochs, for what is said before it starts."""

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


def job_length(job: Job) -> Length:
    """The length of a job's run."""
    return run_length(job.data, job.loop)

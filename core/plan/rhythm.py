"""After which steps a run measures its held-out samples, makes previews and writes checkpoints: how many are still to come."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.counting import count_batches
from ..settings.job import Job

NEVER: Sequence[int] = ()


class Rhythm:
    """Steps after which something is done; 0 is before the first."""

    def __init__(self, *due: Sequence[int]) -> None:
        """`due`: ascending, no step in two of them. Ranges, of which long runs have no list."""
        self._due = due

    def is_due(self, step: int) -> bool:
        """Whether it is done after `step`."""
        return any(step in steps for steps in self._due)

    def after(self, step: int) -> int:
        """How often it is done after later steps than this one; -1: in the whole run."""
        return sum(len(steps) - bisect_right(steps, step) for steps in self._due)


@dataclass(frozen=True)
class Rhythms:
    """Of a run of so many `steps`."""

    steps: int
    validations: Rhythm
    previews: Rhythm
    checkpoints: Rhythm  # but that of the last step, which is written beside all else that is done at the end


def rhythms_of(job: Job) -> Rhythms:
    """Of the job's whole run."""
    steps, checkpoints = job.loop.steps, _checkpoints(job)
    validations = previews = Rhythm()
    if job.held_out_samples:
        every = job.loop.validate_every
        regular = range(0, steps + 1, every)
        with_checkpoints = [step for step in checkpoints if step % every] if job.saving.keep_best else NEVER
        validations = Rhythm(regular, with_checkpoints, _end(steps, every))
    if every := job.previews.every:
        first = range(1) if job.previews.at_start else NEVER
        previews = Rhythm(first, range(every, steps + 1, every), _end(steps, every))
    return Rhythms(steps, validations, previews, Rhythm(checkpoints))


def _end(steps: int, every: int) -> Sequence[int]:
    return range(steps, steps + 1) if steps % every else NEVER


def _checkpoints(job: Job) -> Sequence[int]:
    """As `train.length.checkpoints_due` has them, without that of the last step."""
    steps = job.loop.steps
    if not job.saving.every_epochs:
        return range(job.loop.checkpoint_every, steps, job.loop.checkpoint_every)
    samples = ((sample.shape, sample.repeats) for sample in job.training_samples)
    batches = count_batches(samples, job.loop.batch_size, job.loop.token_budget or None) * job.saving.every_epochs
    a_step = job.loop.gradient_accumulation
    if batches <= a_step:
        return range(1, steps)
    if batches % a_step == 0:
        return range(batches // a_step, steps, batches // a_step)
    ends = (-(-batches * number // a_step) for number in range(1, steps * a_step // batches + 1))
    return [step for step in ends if step < steps]

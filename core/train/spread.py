"""How the batches of a step are spread over several GPUs, in numbers and in words: what a step means does not depend on it.

`gradient_accumulation` of a job is the number of batches of a step over all GPUs. What a person asks for is meant for each
GPU, as in all other trainers: so N GPUs train N times the samples of a step.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..devices import AUTO, resolve_device
from ..errors import ConfigError
from ..plan.spread import choose_context
from ..plan.words import label
from ..settings.job import Job
from ..settings.parallel import ParallelOptions
from ..settings.stage import StageSettings
from ..wan.checkpoint import CheckpointInfo
from .shared import check_one_gpu


@dataclass(frozen=True)
class RunPlace:
    """Where a run over several GPUs is trained."""

    gpus: int
    device: str = AUTO  # one of them
    machine: int = 0  # GPUs of each machine; 0: all of them
    scratch: Path | None = None  # the runs' folder for what is kept of a device


def context_of(parallel: ParallelOptions, gpus: int) -> int:
    """GPUs that share each sample of a job; ConfigError where that number does not divide the run's GPUs."""
    context = parallel.context or 1
    if gpus % context:
        raise ConfigError(
            f"{label('context')} is {context}, but the run has {gpus} GPUs, which can't be split into groups of {context}: "
            "choose a divisor, or other devices."
        )
    return context


def build_over(
    build: Callable[[StageSettings], Job],
    settings: StageSettings,
    info: CheckpointInfo,
    place: RunPlace,
    tell: Callable[[str], object] | None = None,
) -> Job:
    """The job of a run over the GPUs of `place`. `gradient_accumulation` was asked for each GPU: the job holds that of all.

    `build`: makes the job of one GPU, whose model is `info`, from settings. `tell`: is given the reason where it is chosen
    here that GPUs share each clip, or the base. ConfigError for what can't be.
    """
    job = build(settings)
    if place.gpus == 1:
        return job
    check_one_gpu(job, place.gpus)
    device = resolve_device(place.device)
    spread = choose_context(job, info, place.gpus, device=device, folder=place.scratch, machine=place.machine)
    if tell is not None and not settings.parallel.context and (spread.gpus.context > 1 or spread.shards > 1):
        tell(spread.why)
    side_by_side = place.gpus // spread.gpus.context
    loop = replace(settings.loop, gradient_accumulation=settings.loop.gradient_accumulation * side_by_side)
    return build(replace(settings, loop=loop, parallel=spread.settle(settings.parallel)))


def check_spread(job: Job, gpus: int, *, windows: bool = os.name == "nt") -> None:
    """ConfigError for a job that can't be trained over so many GPUs."""
    if gpus == 1:
        return
    check_one_gpu(job, gpus)
    # With 0 the start chooses, and may have all of them share each clip.
    side_by_side = gpus // context_of(job.parallel, gpus) if job.parallel.context else 1
    batches = job.loop.gradient_accumulation
    if batches < side_by_side:
        raise ConfigError(
            f"a step of this run has {_counted(batches, 'batch')}, too few for {gpus} GPUs: train it on {batches} of them, or "
            "start a new run from its recipe or graph, where gradient_accumulation counts for each GPU."
        )
    if windows and (job.parallel.context > 1 or job.parallel.base == "sharded"):
        what = label("context" if job.parallel.context > 1 else "base")
        raise ConfigError(
            f"{what} needs NCCL, which PyTorch has on Linux alone: on Windows, several GPUs can train different samples, with "
            "context_parallel 1 and sharded_base whole."
        )


def describe_spread(job: Job, gpus: int) -> str:
    """One sentence: how many batches a step has, and on which GPUs they are trained."""
    context, batches = context_of(job.parallel, gpus), job.loop.gradient_accumulation
    if not job.parallel.context:
        return f"{gpus} GPUs: each step trains {_counted(batches, 'batch')}; whether GPUs share a clip is chosen at the start"
    groups = gpus // context
    each = f"{batches // groups}" if batches % groups == 0 else f"{batches // groups} or {batches // groups + 1}"
    each = "one" if each == "1" else each
    where = "a GPU" if context == 1 else f"on each group of {context} GPUs"
    same = f"the same as gradient_accumulation {batches} on one GPU"
    return f"{gpus} GPUs: each step trains {_counted(batches, 'batch')}, {each} {where}; {same}"


def _counted(amount: int, what: str) -> str:
    return f"1 {what}" if amount == 1 else f"{amount} {what}es"

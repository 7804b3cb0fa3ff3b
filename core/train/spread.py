"""How the batches of a step are spread over several GPUs, in numbers and in words: what a step means does not depend on it.

`gradient_accumulation` of a job is the number of batches of a step over all GPUs. What a person asks for is meant for each
GPU, as in all other trainers: so N GPUs train N times the samples of a step.
"""

import os
from collections.abc import Callable
from dataclasses import replace

from ..errors import ConfigError
from ..settings.job import Job
from ..settings.parallel import ParallelOptions
from ..settings.stage import StageSettings
from ..wan.checkpoint import CheckpointInfo


def context_of(parallel: ParallelOptions, gpus: int) -> int:
    """GPUs that share each sample; ConfigError where that number does not divide the run's GPUs.

    Where it is left to the program, each GPU trains samples of its own.
    """
    context = parallel.context or 1
    if gpus % context:
        raise ConfigError(
            f"context_parallel is {context}, but the run has {gpus} GPUs, which can't be split into groups of {context}: "
            "choose a divisor, or other devices."
        )
    return context


def choose_context(job: Job, _info: CheckpointInfo, gpus: int) -> int:
    """GPUs that shall share each sample of a job with this model; as the options say it, or else 1."""
    return context_of(job.parallel, gpus)


def build_over(build: Callable[[StageSettings], Job], settings: StageSettings, info: CheckpointInfo, gpus: int) -> Job:
    """The job of a run over so many GPUs: what was asked of each counts for all that train side by side.

    `build`: makes the job of one GPU, whose model is `info`, from settings. ConfigError for what can't be.
    """
    job = build(settings)
    if gpus == 1:
        return job
    return build(settings_over(settings, gpus, choose_context(job, info, gpus)))


def settings_over(settings: StageSettings, gpus: int, context: int) -> StageSettings:
    """The settings of one GPU as those of the whole run, in which `context` GPUs share each sample."""
    loop = replace(settings.loop, gradient_accumulation=settings.loop.gradient_accumulation * (gpus // context))
    return replace(settings, loop=loop, parallel=replace(settings.parallel, context=context))


def check_spread(job: Job, gpus: int, *, windows: bool = os.name == "nt") -> None:
    """ConfigError for a job that can't be trained over so many GPUs."""
    if gpus == 1:
        return
    side_by_side = gpus // context_of(job.parallel, gpus)
    batches = job.loop.gradient_accumulation
    if batches < side_by_side:
        raise ConfigError(
            f"a step of this run has {_counted(batches, 'batch')}, too few for {gpus} GPUs: train it on {batches} of them, or "
            "start a new run from its recipe or graph, where gradient_accumulation counts for each GPU."
        )
    if windows and (job.parallel.context > 1 or job.parallel.base == "sharded"):
        what = "context_parallel" if job.parallel.context > 1 else "sharded_base"
        raise ConfigError(
            f"{what} needs NCCL, which PyTorch has on Linux alone: on Windows, several GPUs can train different samples, with "
            "context_parallel 1 and sharded_base whole."
        )


def describe_spread(job: Job, gpus: int) -> str:
    """One sentence: how many batches a step has, and on which GPUs they are trained."""
    context, batches = context_of(job.parallel, gpus), job.loop.gradient_accumulation
    groups = gpus // context
    each = f"{batches // groups}" if batches % groups == 0 else f"{batches // groups} or {batches // groups + 1}"
    each = "one" if each == "1" else each
    where = "a GPU" if context == 1 else f"on each group of {context} GPUs"
    same = f"the same as gradient_accumulation {batches} on one GPU"
    return f"{gpus} GPUs: each step trains {_counted(batches, 'batch')}, {each} {where}; {same}"


def _counted(amount: int, what: str) -> str:
    return f"1 {what}" if amount == 1 else f"{amount} {what}es"

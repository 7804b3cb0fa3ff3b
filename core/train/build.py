"""How a stage is trained, in the groups of a job, and the one way from there to the job: for graph and command line."""

import math
from dataclasses import replace
from pathlib import Path

from ..adapters.metadata import base_model_name
from ..facts import official_boundary
from ..names import check_name
from ..optimizers import OPTIMIZERS
from ..sample.previews import check_previews
from ..settings.job import DataSpec, Job, ModelSpec, Stage, stage_window
from ..settings.loop import LoopOptions
from ..settings.stage import StageSettings
from ..wan.checkpoint import CheckpointInfo, hints_expert
from ..wan.recovery import file_identity
from .batches import BatchSchedule


def build_job(
    info: CheckpointInfo,
    data: DataSpec,
    settings: StageSettings,
    *,
    name: str,
    stage: Stage,
    trigger_word: str = "",
    recovery_adapter: Path | None = None,
    preview_vae: str = "",
) -> Job:
    """The job of one stage; ConfigError for settings that can't work.

    `preview_vae`: the VAE's file, where the run itself decodes its previews.
    """
    low, high = stage_window(stage, settings.boundary or official_boundary(info.config.variant))
    loop = settings.loop
    if settings.epochs:
        loop = replace(loop, steps=steps_of_epochs(settings.epochs, data, loop))
    job = Job(
        name=check_name(name, "lora_name"),
        stage=stage,
        model=ModelSpec(
            path=str(info.path),
            identity=info.identity,
            precision=settings.precision,
            recovery_adapter="" if recovery_adapter is None else str(recovery_adapter),
            recovery_identity="" if recovery_adapter is None else file_identity(recovery_adapter),
            label=base_model_name(info.config, is_expert=stage != "single"),
        ),
        data=data,
        adapter=settings.adapter,
        timesteps=replace(settings.timesteps, sigma_min=low, sigma_max=high),
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        loop=loop,
        memory=settings.memory,
        previews=settings.previews,
        loss=settings.loss,
        ema=settings.ema,
        preview_vae=preview_vae if settings.previews.every else "",
        device=settings.device,
        trigger_word=trigger_word,
    )
    check_previews(job)
    return job


def steps_of_epochs(epochs: int, data: DataSpec, loop: LoopOptions) -> int:
    """Updates in which the batches of `epochs` epochs are used; the last update may reach into the next epoch."""
    return math.ceil(epochs * BatchSchedule.of(data, loop).batches_per_epoch / loop.gradient_accumulation)


def job_warnings(job: Job, settings: StageSettings | None = None) -> list[str]:
    """Settings without effect, and a model file that looks like the other expert's.

    `settings`: those that the job was made of, where they are at hand.
    """
    found = [*job.warnings(), *(settings.warnings(job.stage) if settings else [])]
    advice = OPTIMIZERS.get(job.optimizer.name).advice(job.optimizer)
    found += [advice] if advice else []
    path = Path(job.model.path)
    hint = hints_expert(path)
    if hint in (None, job.stage):
        return found
    if job.stage == "single":
        sentence = f"{path.name} looks like the {hint} noise expert of Wan 2.2, but the stage is single model."
    else:
        sentence = f"{path.name} looks like the {hint} noise expert, but the stage is {job.stage} noise."
    return [*found, sentence]

"""How a stage is trained, in the groups of a job, and the one way from there to the job: for graph and command line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.metadata import base_model_name
from ..adapters.start_from import adapter_identity
from ..errors import ConfigError
from ..facts import FPS, FPS_TI2V, latent_format, official_boundary
from ..names import check_name
from ..optimizers import OPTIMIZERS
from ..sample.previews import check_previews, preview_warnings
from ..settings.job import DataSpec, ExpertTurns, Job, ModelSpec, Stage, stage_window
from ..settings.loop import LoopOptions
from ..settings.stage import StageSettings
from ..wan.checkpoint import CheckpointInfo, hints_expert
from ..wan.recovery import file_identity
from ..words import counted
from .average import start_left
from .crepa import crepa_identity
from .length import checkpoints_made, job_length, run_length
from .other_expert import check_preview_loras, other_spec
from .regularizers import regularizer_warnings
from .shared import check_shared_settings

_MOST_OF_THE_START = 0.2  # in the average at the end, without a word


@dataclass(frozen=True, kw_only=True)
class PreviewModels:
    """What previews are made with, besides the model that is trained."""

    vae: str = ""  # its file, where the run itself decodes its previews
    other: CheckpointInfo | None = None  # the model of the other stage, through which they go, too


def build_job(
    info: CheckpointInfo,
    data: DataSpec,
    settings: StageSettings,
    *,
    name: str,
    stage: Stage,
    trigger_word: str = "",
    recovery_adapter: Path | None = None,
    previews_with: PreviewModels | None = None,
) -> Job:
    """The job of one stage; ConfigError for settings that can't work.

    `info`: the model, of the stage both the high noise expert. `previews_with`: what previews need besides the model; by
    default they have the model alone, and somebody else's VAE. The stage both needs its `other`, the low noise expert.
    CREPA looks at what its VAE gives.
    """
    check_expert(info.path, "high" if stage == "both" else stage, allow_other=settings.allow_other_expert)
    boundary = settings.boundary or official_boundary(info.config.variant)
    low, high = stage_window(stage, boundary)
    loop = settings.loop
    if settings.epochs:
        loop = replace(loop, steps=steps_of_epochs(settings.epochs, data, loop))
    beside = previews_with or PreviewModels()
    other = other_spec(stage, info, beside.other, allow_other=settings.allow_other_expert)
    if settings.previews.every:
        check_preview_loras(settings.previews, info)
    if stage == "both":
        check_shared_settings(settings, has_other=other is not None)
        other = None if other is None else replace(other, precision=settings.precision)
    elif settings.shared_lora and stage != "single":
        raise ConfigError(
            "shared_lora trains one LoRA through both experts, so that the stage is both, not one of them."
        )
    else:
        other = other if settings.previews.every else None
    crepa = settings.crepa
    if crepa.weight:
        crepa = replace(crepa, vae=crepa.vae or beside.vae)
    groups: dict[str, Any] = {
        **dict(settings.groups()),
        "timesteps": replace(settings.timesteps, sigma_min=low, sigma_max=high),
        "loop": loop,
        "crepa": crepa,
    }
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
        **groups,
        other_expert=other,
        preview_vae=beside.vae if settings.previews.every else "",
        device=settings.device,
        alternate_every=settings.alternate_every if stage in ("high", "low") else 0,
        turns=ExpertTurns(every=settings.alternate_every, boundary=boundary) if stage == "both" else None,
        trigger_word=trigger_word,
        start_identity=adapter_identity(settings.adapter.start_from, "start_from"),
        merge_identity=adapter_identity(settings.adapter.merge_into_base, "merge_into_base"),
        crepa_identity=crepa_identity(crepa),
    )
    check_previews(job)
    return job


def with_copies(job: Job, folder: Path) -> Job:
    """The job with the folder that copies of its checkpoints go to, if they are wanted."""
    return replace(job, loras_folder=str(folder)) if job.saving.copies else job


def check_expert(model: Path, stage: Stage, *, allow_other: bool = False) -> None:
    """ConfigError for a file that by its name is the expert that `stage` does not train.

    Nothing would look wrong for hours: the weights can't tell, as both experts have the same names and shapes.
    """
    hint = hints_expert(model)
    if allow_other or stage == "single" or hint in (None, stage):
        return
    raise ConfigError(
        f"{model.name} is the {hint} noise expert by its name, but the stage is {stage} noise: choose the {stage} noise "
        "file, or the other stage. If you mean it, switch allow_other_expert on."
    )


def steps_of_epochs(epochs: int, data: DataSpec, loop: LoopOptions) -> int:
    """Updates in which the batches of `epochs` epochs are used; the last update may reach into the next epoch."""
    return run_length(data, loop).steps_of(epochs)


def job_warnings(job: Job, settings: StageSettings | None = None) -> list[str]:
    """Settings without effect, and a model file that looks like an expert's where it is not trained as one.

    `settings`: those that the job was made of, where they are at hand.
    """
    found = [
        *job.warnings(),
        *(settings.warnings(job.stage) if settings else []),
        *_rate_warning(job),
        *_ema_warning(job),
        *_saving_warning(job),
    ]
    advice = OPTIMIZERS.get(job.optimizer.name).advice(job.optimizer)
    found += [advice] if advice else []
    found += [*regularizer_warnings(job), *preview_warnings(job)]
    path = Path(job.model.path)
    hint = hints_expert(path)
    if hint in (None, job.stage) or job.stage == "both":
        return found
    trained_as = "single model" if job.stage == "single" else f"{job.stage} noise"
    return [*found, f"{path.name} looks like the {hint} noise expert of Wan 2.2, but the stage is {trained_as}."]


def _ema_warning(job: Job) -> list[str]:
    """A sentence for an average that hardly follows in so short a run, so that it has learnt nothing."""
    if not job.ema.use:
        return []
    left = start_left(job.loop.steps, job.ema)
    if left == 1:
        every = f"ema_update_interval ({job.ema.every}) is longer than the run ({counted(job.loop.steps, 'step')})"
        return [f"{every}: the average stays as untrained as at the start; lower ema_update_interval, or turn ema off."]
    if left <= _MOST_OF_THE_START:
        return []
    return [
        f"after {counted(job.loop.steps, 'step')} {left:.0%} of the average is still the untrained start: lower ema_decay or "
        "ema_update_interval, turn ema_warmup on, or turn ema off."
    ]


def _saving_warning(job: Job) -> list[str]:
    """A sentence for epochs between two checkpoints that are more than the run has: a stop by force would lose all of it."""
    every = job.saving.every_epochs
    if not every or checkpoints_made(job) > 1 or job_length(job).epochs >= every:
        return []
    return [
        f"checkpoint_every_epochs is {every}, but the run has {counted(job_length(job).epochs, 'epoch')}: its only "
        "checkpoint is that of its end; lower checkpoint_every_epochs."
    ]


def _rate_warning(job: Job) -> list[str]:
    """A sentence for clips at another frame rate than the model was trained at: motion is learnt at another speed."""
    clips = [sample for sample in job.data.samples if sample.shape[1] > 1]
    if not clips:
        return []
    made_by = latent_format(clips[0].shape[0])
    model, right = ("TI2V 5B", FPS_TI2V) if made_by == "wan2.2" else ("this model", FPS)
    wrong = [f"{fps:g}" for fps in (job.data.fps, *job.data.more_fps) if fps != right]
    if not wrong:
        return []
    return [
        f"the clips have {' and '.join(wrong)} frames per second, but {model} was trained at {right:g}: motion will get "
        f"another speed; set fps of the dataset to {right:g}."
    ]

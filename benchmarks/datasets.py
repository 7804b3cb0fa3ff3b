"""Datasets as people have them, of several sizes: random latents and texts of true size, and a job to train on them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.benchmarks.material import MODELS, Clip, make_job, write_sample
from wan_train.core.facts import BOUNDARY_I2V_A14B, BOUNDARY_T2V_A14B, clip_size
from wan_train.core.settings.job import Job, Stage, stage_window
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.precision import Precision
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig

# How many samples of each size. A picture of 960x960 has 3,600 tokens, those of its other aspect ratios 3,572 and 3,588.
DATASETS: dict[str, Mapping[str, int]] = {
    "pictures": {"960x960x1": 4, "1216x752x1": 4, "752x1216x1": 4, "1104x832x1": 4, "832x1104x1": 4},
    "mixed": {
        "832x480x33": 4,
        "480x832x33": 4,
        "960x960x1": 2,
        "1216x752x1": 2,
        "832x1104x1": 1,
        "768x768x1": 1,
    },
    "small": {"512x512x1": 20},  # of 1,024 tokens
    "portrait": {"480x832x33": 8, "832x480x33": 8},
}
SMALL = 16  # as many times smaller are the sides of what a dry run trains on
BOUNDARIES = {"wan2.2-t2v-a14b": BOUNDARY_T2V_A14B, "wan2.2-i2v-a14b": BOUNDARY_I2V_A14B}  # of two experts
STAGES: dict[bool, Stage] = {False: "high", True: "low"}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is trained, and how: by its defaults, with what is said here."""

    dataset: str
    steps: int
    precision: Precision = "auto"
    cap_gb: float = 0.0
    accumulation: int = 1  # batches of a step
    second: bool = False  # the other expert
    options: Mapping[str, object] | None = None  # of the job's memory, beside the cap


def clips_of(dataset: str, *, small: bool = False) -> dict[Clip, int]:
    """The sizes of a dataset and how many samples each has. `dataset`: one of DATASETS."""
    clips = {Clip.parse(text): number for text, number in DATASETS[dataset].items()}
    return {_smaller(clip): number for clip, number in clips.items()} if small else clips


def _smaller(clip: Clip) -> Clip:
    width, height = (max(round(side / SMALL / 16), 1) * 16 for side in (clip.width, clip.height))
    return Clip(width, height, 5 if clip.frames > 1 else 1)


def write_run(folder: Path, data: Path, model: Path, recipe: RunSettings, *, small: bool = False) -> Job:
    """A run folder with a job on the whole dataset, whose caches are in `data`. A model of two experts is one of them."""
    config = inspect(model).config
    label = label_of(config)
    clips = clips_of(recipe.dataset, small=small)
    samples = [write_sample(data, clip, config, number) for clip, count in clips.items() for number in range(count)]
    job = make_job(data, model, list(clips)[:1], recipe.steps)
    stage: Stage = STAGES[recipe.second] if label in BOUNDARIES else "single"
    low, high = stage_window(stage, BOUNDARIES.get(label, BOUNDARY_T2V_A14B))
    job = replace(
        job,
        name=recipe.dataset,
        stage=stage,
        model=replace(job.model, label=label, precision=recipe.precision),
        data=replace(job.data, samples=tuple(samples)),
        timesteps=replace(job.timesteps, sigma_min=low, sigma_max=high),
        loop=replace(job.loop, checkpoint_every=250, gradient_accumulation=recipe.accumulation),
        memory=MemoryOptions(budget_gb=recipe.cap_gb, **(recipe.options or {})),  # type: ignore[arg-type]
    )
    folder.mkdir(parents=True)
    RunFolder(folder).write_job(job)
    return job


def label_of(config: WanConfig) -> str:
    """The base that a random model of this form stands for."""
    if config.variant == "i2v":
        return "wan2.2-i2v-a14b"
    if config.variant == "ti2v":
        return "wan2.2-ti2v-5b"
    return "wan2.1-t2v-1.3b" if config.dim == MODELS["1.3b"].dim else "wan2.2-t2v-a14b"


def sizes_of_steps(job: Job, steps: int) -> list[str]:
    """The clip that each of the first `steps` steps trains on, one sample a step or several of one size."""
    schedule = BatchSchedule.of(job.data, job.loop)
    return [_clip_of(schedule.samples_at(index * job.loop.gradient_accumulation)[0].shape) for index in range(steps)]


def shares(job: Job) -> dict[str, float]:
    """The share of each size of all steps of an epoch."""
    schedule = BatchSchedule.of(job.data, job.loop)
    counts = Counter(sizes_of_steps(job, schedule.batches_per_epoch))
    return {clip: count / counts.total() for clip, count in counts.items()}


def _clip_of(shape: tuple[int, int, int, int]) -> str:
    frames, height, width = clip_size(shape)
    return str(Clip(width, height, frames))

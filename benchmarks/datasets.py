"""Datasets as people have them, of several sizes: random latents and texts of true size, and a job to train on them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.benchmarks.material import Clip, make_job, write_sample
from wan_train.core.facts import BOUNDARY_T2V_A14B, clip_size
from wan_train.core.settings.job import Job, Stage, stage_window
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.precision import Precision
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect

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
    """A run folder with the job of one expert of Wan 2.2 on the whole dataset, whose caches are in `data`."""
    config = inspect(model).config
    clips = clips_of(recipe.dataset, small=small)
    samples = [write_sample(data, clip, config, number) for clip, count in clips.items() for number in range(count)]
    job = make_job(data, model, list(clips)[:1], recipe.steps)
    stage = STAGES[recipe.second]
    low, high = stage_window(stage, BOUNDARY_T2V_A14B)
    job = replace(
        job,
        name=recipe.dataset,
        stage=stage,
        model=replace(job.model, label="wan2.2-t2v-a14b", precision=recipe.precision),
        data=replace(job.data, samples=tuple(samples)),
        timesteps=replace(job.timesteps, sigma_min=low, sigma_max=high),
        loop=replace(job.loop, checkpoint_every=250, gradient_accumulation=recipe.accumulation),
        memory=MemoryOptions(budget_gb=recipe.cap_gb, **(recipe.options or {})),  # type: ignore[arg-type]
    )
    folder.mkdir(parents=True)
    RunFolder(folder).write_job(job)
    return job


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

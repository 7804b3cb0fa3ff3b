"""What a training will be, before anything of it is cached or loaded: its data by the sizes of the files, and its plan."""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.join import frame_rates
from ..data.types import Dataset, Sample
from ..disk import free_bytes, gigabytes
from ..errors import DatasetError
from ..facts import LATENT_CHANNELS, PATCH, PIXELS_PER_LATENT, latent_shape
from ..plan.advice import explain, memory_taken, what_would_fit
from ..plan.card import Card
from ..plan.decision import decide
from ..plan.learnt import Learnt
from ..plan.shortages import Met
from ..plan.sizes import Sizes
from ..plan.spread import run_seconds
from ..settings.dataset import Conditioning
from ..settings.job import CaptionText, DataSpec, Job, TrainSample
from ..wan.checkpoint import CheckpointInfo
from ..wan.config import WanConfig
from ..words import counted
from .space import check_space, space_needed
from .spread import describe_spread

_LATER = "?"  # in the place of a path or key of what is not cached yet


def expected_data(
    dataset: Dataset, config: WanConfig, conditioning: Conditioning = "none", *, has_vision: bool = False
) -> DataSpec:
    """The data of a job as Cache Latents and Cache T5 will make it, but for its files: sizes, captions, repeats, weights.

    DatasetError if nothing is left to train on.
    """
    used = (sample for sample in dataset.samples if _is_used(sample, config, conditioning))
    samples = tuple(_sample(sample, config, conditioning, has_vision) for sample in used)
    if all(sample.held_out for sample in samples):
        raise DatasetError(
            f"no sample of {dataset.folder} is left to train on: add clips, or hold fewer of them out (held_out)."
        )
    fps, *more_fps = frame_rates(dataset)
    return DataSpec(
        samples=samples,
        empty_text_path=_LATER,
        empty_text_key=_LATER,
        text_dim=config.text_dim,
        conditioning=conditioning,
        fps=fps,
        more_fps=tuple(more_fps),
    )


def _is_used(sample: Sample, config: WanConfig, conditioning: Conditioning) -> bool:
    """Image-to-video models learn from clips alone; TI2V-5B takes pictures too."""
    return conditioning == "none" or config.latent_format == "wan2.2" or len(sample.frame_indices) > 1


def _sample(sample: Sample, config: WanConfig, conditioning: Conditioning, has_vision: bool) -> TrainSample:
    step = PIXELS_PER_LATENT[config.latent_format] * PATCH
    height, width = (side // step * step for side in (sample.height, sample.width))  # that is encoded
    captions = (sample.file.caption, *sample.file.more_captions)
    later = CaptionText(path=_LATER, key=_LATER)
    is_given = conditioning != "none" and config.latent_format == "wan2.1"
    return TrainSample(
        name=sample.name,
        latents_path=_LATER,
        latents_key=sample.content_key,
        shape=latent_shape(LATENT_CHANNELS[config.latent_format], len(sample.frame_indices), height, width),
        text_path=_LATER,
        text_key=_LATER,
        caption=sample.file.caption,
        repeats=sample.repeats,
        held_out=sample.held_out,
        known_path=_LATER if is_given else "",
        vision_path=_LATER if has_vision else "",
        loss_weight=sample.treatment.loss_weight,
        caption_dropout=sample.treatment.caption_dropout,
        is_regularization=sample.treatment.is_regularization,
        more_texts=(later,) * len(sample.file.more_captions),
        class_texts=(later,) * len(sample.treatment.class_captions(captions)),
        mask_path=_LATER if sample.mask else "",
    )


class PlanLine(NamedTuple):
    """What a run would do now, in words; `to_mend`: whether it would take more than it may, and the words say what fits.

    `is_refused`: the run would not even try it.
    """

    text: str
    to_mend: bool = False
    is_refused: bool = False


def plan_line(job: Job, info: CheckpointInfo, device: torch.device, scratch: Path) -> PlanLine:
    """The plan that a run of `job` would choose now: memory, time of a step and of the whole run; or what would fit.

    `scratch`: the folder in which runs keep what they have learnt of the device. What is not known of it yet is measured,
    which takes some seconds. ConfigError for what can't be had on `device`; OSError on a system that does not say what is
    free.
    """
    decision = decide(job, info, device, scratch)
    learnt = Learnt(device, scratch)
    probe = learnt.probe(decision)
    planner = learnt.planner(job, decision, probe)
    choice = planner.choose() or replace(planner, met=Met()).choose()  # as the run does
    if choice is None and decision.joined > 1:
        planner = learnt.planner(job, replace(decision, joined=1), probe)
        choice = planner.choose()
    is_cpu = device.type == "cpu"
    if choice is None:
        is_tried = is_cpu or job.memory.plan == "manual"  # all the same
        to_mend = not is_tried or (is_cpu and job.memory.budget_gb > 0)
        said = what_would_fit(planner) + (" The run tries it all the same." if is_tried else "")
        return PlanLine(said, to_mend, is_refused=not is_tried)
    if is_cpu:  # of which no run has taught the planner how long a step takes
        return PlanLine(
            f"on the CPU: {memory_taken(planner, choice)}; how long a step takes shows after the first ones"
        )
    return PlanLine(explain(planner, choice, steps=job.loop.steps))


def spread_line(
    job: Job, info: CheckpointInfo, gpus: int, device: torch.device, scratch: Path, card: Card | None = None
) -> PlanLine:
    """The same for a run over several GPUs, of which `device` is one: nothing is measured, so no time is promised.

    `card`: what the GPUs can do, where that was measured.
    """
    found = run_seconds(job, info, gpus, device=device, folder=scratch, card=card)
    fits = found is None or math.isfinite(found[0])
    later = "memory and time show at the start" if fits else "by what is known now it does not fit, but it is tried"
    return PlanLine(f"{describe_spread(job, gpus)}; {later}")


def disk_lines(job: Job, sizes: Sizes, folder: Path) -> list[str]:
    """What a new run in `folder` would take of its disk, and a warning where that is much. RunError if it can't fit."""
    need, free = space_needed(job, sizes), free_bytes(folder)
    warnings = check_space(job, sizes, folder)
    left = "" if free is None else f" of {gigabytes(free)} that are free"
    kept = counted(need.checkpoints, "checkpoint")
    return [f"disk: {gigabytes(need.total)}{left}, for {kept} and the LoRA", *warnings]

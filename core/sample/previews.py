"""What a run's previews show, and how they are sampled."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

from ..errors import ConfigError
from ..facts import PATCH, clip_size, latent_shape, official_shift, pixels_per_latent
from ..limits import MAX_TOKENS
from ..packages import check_packages
from ..paths import shown
from ..settings.job import Job, TrainSample
from ..settings.samples import SamplePrompt
from ..words import counted
from .sampler import SampleOptions, check_steps, schedule, switch_step
from .samplers import SAMPLERS
from .shares import sigma_after

SHOTS_AT_ONCE = 2  # of one size, by which each block that is read from a file serves more than one


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One video of a preview."""

    name: str  # of its prompt; "": the caption of a sample
    prompt: str
    text_path: str
    negative_path: str
    shape: tuple[int, int, int, int]  # C, F, H, W of the latents
    seed: int
    sampling: SampleOptions


def preview_sample(job: Job) -> TrainSample:
    """The sample whose caption, size and given frames previews have: the first held-out one, else the first."""
    return (*job.held_out_samples, *job.training_samples)[0]


def boundary_of(job: Job) -> float:
    """The sigma where the high noise expert hands over."""
    if job.turns is not None:
        return job.turns.boundary
    return job.timesteps.sigma_min if job.stage == "high" else job.timesteps.sigma_max


def preview_sampling(job: Job, boundary: float) -> SampleOptions:
    """The sampler's options, with the experts' boundary as sigma."""
    options = job.previews
    shift = options.shift or official_shift(_variant(job), has_experts=job.stage != "single")
    with _telling(""):
        return SampleOptions(
            steps=options.steps,
            shift=shift,
            cfg=options.cfg,
            boundary=boundary,
            sampler=options.sampler,
            scheduler=options.scheduler,
            skip_scale=options.skip_scale if options.skip_layers.strip() else 0.0,
            skip_start=options.skip_start,
            skip_stop=options.skip_stop,
        )


@contextmanager
def _telling(prompt: str) -> Iterator[None]:
    """What is wrong with how videos are sampled is told of previews, or of the prompt: a training has steps, too."""
    try:
        yield
    except ConfigError as error:
        where = f"the sample prompt {shown(prompt)}" if prompt else "previews"
        raise ConfigError(f"{where}: {error}") from error


def preview_shots(job: Job, step: int = 0) -> list[Shot]:
    """The videos of the preview after `step` steps, in the order of the prompts."""
    sample, options = preview_sample(job), job.previews
    shared = preview_sampling(job, boundary_of(job))
    walked = options.seed + (step if options.seed_walk == "steps" else 0)
    if not job.data.prompts:
        shape = _shape(job, SamplePrompt(name="1", prompt="the caption"))
        texts = {"text_path": sample.text_path, "negative_path": job.data.empty_text_path}
        return [Shot(name="", prompt=sample.caption, shape=shape, seed=walked, sampling=shared, **texts)]
    shots: list[Shot] = []
    for number, prompt in enumerate(job.data.prompts):
        asked = prompt.asked
        own = {
            name: getattr(asked, name) for name in ("steps", "shift", "sampler", "scheduler") if getattr(asked, name)
        }
        seed = walked + (number if options.seed_walk == "prompts" else 0) if asked.seed is None else asked.seed
        with _telling(asked.name):
            sampling = replace(shared, **own, cfg=shared.cfg if asked.cfg is None else asked.cfg)
        shot = Shot(
            name=asked.name,
            prompt=asked.prompt,
            text_path=prompt.text.path,
            negative_path=prompt.negative.path,
            shape=_shape(job, asked),
            seed=seed,
            sampling=sampling,
        )
        shots.append(shot)
    return shots


def sampled_together(shots: Sequence[Shot], *, reads_files: bool) -> Iterator[list[Shot]]:
    """Neighbours that are sampled alike; one by one where no expert is read from its file for them."""
    most = SHOTS_AT_ONCE if reads_files else 1
    for _, alike in groupby(shots, key=lambda shot: (shot.shape, shot.sampling)):
        group = list(alike)
        yield from (group[start : start + most] for start in range(0, len(group), most))


def reads_own(job: Job) -> bool:
    """Whether previews are made with the trained expert as it is in its file, as other LoRAs are on it than in training."""
    return bool(job.previews.lora) or (not job.previews.with_merged and bool(job.adapter.merge_into_base))


def check_previews(job: Job) -> None:
    """ConfigError for previews that can't be made: of a size that the model has not, or without a step."""
    if not job.previews.every:
        return
    for shot in preview_shots(job):
        check_packages(SAMPLERS.get(shot.sampling.sampler).packages)
        sigmas = schedule(shot.sampling)
        switch = len(sigmas) - 1 if job.stage == "single" else switch_step(sigmas, shot.sampling.boundary)
        with _telling(shot.name):
            check_steps(shot.sampling, sigmas, switch)
        if (job.stage == "high" and switch == 0) or (job.stage == "low" and switch >= len(sigmas) - 1):
            raise _no_step(job, shot)


def preview_warnings(job: Job) -> list[str]:
    """What is otherwise than asked for: prompts that nobody sees, the size of previews, skip-layer guidance without a step."""
    options = job.previews
    found = [*_skip_warnings(job), *_lora_warnings(job)]
    if job.data.prompts and not options.every:
        found.append("sample_prompts are not shown: preview_every is 0, which makes no previews.")
    wanted = [(one.asked.width, one.asked.height, one.asked.frames) for one in job.data.prompts]
    is_asked = any(any(sizes) for sizes in [*wanted, (options.width, options.height, options.frames)])
    if not (options.every and is_asked and _is_of_sample(job)):
        return found
    frames, height, width = clip_size(preview_sample(job).shape)
    why = (
        "as an image-to-video model is given the frame of that sample"
        if job.data.conditioning != "none"
        else "as a preview of the low noise stage starts from it where the other expert is not known (other_dit)"
    )
    return [
        *found,
        f"previews have the size of the first held-out sample, {width}x{height} and {counted(frames, 'frame')}, {why}.",
    ]


def _lora_warnings(job: Job) -> list[str]:
    """A sentence for each option of previews' LoRAs that has nothing to be on, or to be left out."""
    options = job.previews
    found = []
    if options.every and options.other_lora and job.other_expert is None:
        found.append("preview_other_lora has no effect without the other expert (other_dit).")
    if options.every and not options.with_merged and not job.adapter.merge_into_base:
        found.append("preview_with_merged has no effect without a file in merge_into_base.")
    return found


def _skip_warnings(job: Job) -> list[str]:
    """A sentence for skip-layer guidance that ends before the low noise expert, alone, begins."""
    options, boundary = job.previews, boundary_of(job)
    is_alone = job.stage == "low" and job.other_expert is None
    if not (options.every and options.skip_layers.strip() and is_alone):
        return []
    if sigma_after(options.skip_stop, preview_sampling(job, boundary).shift) < boundary:
        return []
    return [
        f"preview_skip_layers has no effect in previews of the low noise expert alone: preview_skip_stop {options.skip_stop:g}"
        f" ends above the boundary {boundary:g}."
    ]


def _is_of_sample(job: Job) -> bool:
    """Whether previews are made on a sample, so that they have its size."""
    return job.data.conditioning != "none" or (job.stage == "low" and job.other_expert is None)


def _no_step(job: Job, shot: Shot) -> ConfigError:
    place, sampling = "above" if job.stage == "high" else "below", shot.sampling
    has_own = any(prompt.asked.name == shot.name and prompt.asked.steps for prompt in job.data.prompts)
    steps = f"steps of the sample prompt {shown(shot.name)}" if has_own else "preview_steps"
    return ConfigError(
        f"{steps} is {sampling.steps}, and none of these steps is {place} the boundary {sampling.boundary:g}, "
        f"where the {job.stage} noise expert works: raise {'them' if has_own else steps}, or set preview_every to 0."
    )


def _shape(job: Job, asked: SamplePrompt) -> tuple[int, int, int, int]:
    """Of the latents: what the prompt asks for, else the options, else the sample."""
    sample, options = preview_sample(job).shape, job.previews
    if _is_of_sample(job):
        return sample
    frames, height, width = clip_size(sample)
    width, height = asked.width or options.width or width, asked.height or options.height or height
    multiple = PATCH * pixels_per_latent(sample[0])
    for name, side in (("width", width), ("height", height)):
        if side % multiple and side in (asked.width, asked.height, options.width, options.height):
            raise ConfigError(
                f"the {name} of previews is {side}, but videos of this model have sides that are multiples of {multiple}."
            )
    frames = asked.frames or options.frames or frames
    shape = latent_shape(sample[0], frames, height, width)
    if math.prod(shape[1:]) > PATCH**2 * MAX_TOKENS:
        raise ConfigError(
            f"previews of {width}x{height} with {counted(frames, 'frame')} are larger than anything a model takes: lower "
            f"preview_width, preview_height or preview_frames, or those of the sample prompt {shown(asked.name)}."
        )
    return shape


def _variant(job: Job) -> str:
    """t2v, i2v and their like, by the label that the job's base model has, as "wan2.2-t2v-a14b"."""
    return job.model.label.partition("-")[2].partition("-")[0]

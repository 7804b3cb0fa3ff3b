"""Previews of a run: videos sampled now and then with the LoRA as it is then.

Text and size are those of the job's prompts, or of one sample; the frames that image-to-video is given are that sample's. An
expert whose other one is not known makes its own part of the way from noise to video alone, and the rest is a straight line:
see `experts`.

B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..encoders.vae import load_video_encoder
from ..errors import DatasetError, RunError, WanTrainError
from ..facts import EXPERTS, NUM_TIMESTEPS, Expert, clip_size, num_tokens
from ..flow.objective import give_first_frame
from ..paths import shown
from ..plan.recovery import first_line
from ..sample.previews import Shot, preview_sample, preview_shots, sampled_together
from ..sample.sampler import OnStep, VelocityModel, initial_noise, sample
from ..settings.job import Job, Stage
from ..shortage import free_caches, is_out_of_memory, shortage_of
from ..words import counted
from .batches import Batch, load_batch, load_context
from .events import EventWriter
from .loop import StepReport, Trainer
from .other_expert import OtherExpert, beside_own, newest_lora, open_other, open_own
from .preview_folder import PreviewFolder, Shown, write_video
from .run_folder import RunFolder
from .skip_blocks import block_numbers, without_blocks

WAIT_S, POLL_S = 120.0, 0.1


class _BrokenOffError(Exception):
    """A stop was asked for while a preview was sampled."""


def preview_latents(trainer: Trainer, on_step: OnStep | None = None) -> Tensor:
    """Normalised latents [C, F, H, W] float32 on the CPU of the first of the previews, by the weights as they are."""
    return sample_shots(trainer, preview_shots(trainer.job, trainer.step)[:1], on_step=on_step)[0]


def sample_shots(
    trainer: Trainer,
    shots: Sequence[Shot],
    *,
    other: OtherExpert | None = None,
    own: OtherExpert | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Normalised latents [C, F, H, W] float32 on the CPU of each shot, by the weights as they are.

    `other`: the expert that is not trained. Without it the low noise expert starts from its sample, and makes videos of that
    one's size. `own`: the one that is trained, from its file, in the place of the trainer's model. `on_step` may raise to end
    it. The model is left in training.
    """
    if trainer.job.stage == "low" and other is None:
        shots = [replace(shot, shape=preview_sample(trainer.job).shape) for shot in shots]
    trainer.model.eval()
    try:
        groups = sampled_together(shots, reads_files=other is not None or own is not None)
        return [latents for group in groups for latents in _sample(trainer, group, other, own, on_step)]
    finally:
        trainer.model.train()


def _sample(
    trainer: Trainer,
    shots: Sequence[Shot],
    other: OtherExpert | None,
    file: OtherExpert | None,
    on_step: OnStep | None,
) -> Iterator[Tensor]:
    job, device = trainer.job, trainer.device
    options = replace(shots[0].sampling, seeds=tuple(shot.seed for shot in shots))
    chosen = preview_sample(job)
    batch = load_batch([chosen], [chosen.text_path], job.data.conditioning).map(lambda tensor: tensor.to(device))
    noise = torch.cat([initial_noise((1, *shot.shape), shot.seed) for shot in shots]).to(device)
    context = _contexts([shot.text_path for shot in shots], device)
    negative = _contexts([shot.negative_path for shot in shots], device) if options.cfg != 1.0 else None
    own, blocks = velocity_model(trainer, batch, file), ()
    if options.skip_scale > 0:
        blocks = block_numbers(job.previews.skip_layers, len(trainer.model.blocks))  # type: ignore[arg-type]
    leaving_out = LeavingOut(trainer, blocks, [each for each in (other, file) if each is not None])
    if job.stage == "both":
        high, low = (of_expert(trainer, own, expert) for expert in EXPERTS)
    elif other is None:
        high, low = experts(job.stage, own, batch.latents, leaving_out)
    else:
        away = partial(other.velocity, batch.images)
        high, low = (own, away) if job.stage == "high" else (away, own)
    skipping = leaving_out if blocks else None
    yield from sample(high, low, noise, context, negative, options, on_step, skipping).cpu()


def of_expert(trainer: Trainer, model: VelocityModel, expert: Expert) -> VelocityModel:
    """The trainer's model with the weights of an expert, of a LoRA that is trained through both."""

    def velocity(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        trainer.use_expert(expert)
        return model(latents, timesteps, context)

    return velocity


def _contexts(paths: Sequence[str], device: torch.device) -> Tensor:
    return torch.stack([load_context(path, "a preview") for path in paths]).to(device)


@dataclass
class LeavingOut:
    """Skip-layer guidance: within it the models of a preview leave `blocks` out."""

    trainer: Trainer
    blocks: Sequence[int]
    from_files: Sequence[OtherExpert]
    is_on: bool = False

    def __call__(self) -> AbstractContextManager[None]:
        return self._within()

    @contextmanager
    def _within(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(without_blocks(self.trainer.model, self.blocks))  # type: ignore[arg-type]
            for expert in self.from_files:
                stack.enter_context(expert.without_blocks(self.blocks))
            self.is_on = True
            try:
                yield
            finally:
                self.is_on = False


def velocity_model(trainer: Trainer, batch: Batch, file: OtherExpert | None = None) -> VelocityModel:
    """The trainer's model as the sampler calls it, or `file` in its place, given what `batch`, of one sample, is given.

    The model runs sample by sample, as guidance would else double the memory that a forward takes.
    """
    given, many = batch.images, None if file is None else partial(file.velocity, batch.images)
    if many is not None and not trainer.given_frames:
        return many

    def velocity(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        rows = zip(latents.split(1), timesteps.split(1), context.split(1), strict=True)
        return torch.cat([one(*row) for row in rows])

    def one(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        if not trainer.given_frames:
            return trainer.model(latents, timesteps, context, **given).float()
        noisy, by_frame = give_first_frame(latents, batch.latents, timesteps)
        velocity = many(noisy, by_frame, context) if many else trainer.model(noisy, by_frame, context).float()
        velocity[:, :, :1] = _straight_to(batch.latents[:, :, :1], latents[:, :, :1], timesteps)
        return velocity

    return velocity


def experts(
    stage: Stage, model: VelocityModel, latents: Tensor, skipping: "LeavingOut | None" = None
) -> tuple[VelocityModel, VelocityModel | None]:
    """Who leads above the boundary, and who below, where `model` is the stage's; None: `model` leads all the way.

    High: below the boundary its last estimate of the video is held, x - sigma v; also that without the blocks of
    `skipping`. Low: above the boundary the way leads to the sample's own `latents` [1, C, F, H, W]. Both are straight
    lines, which every sampler follows, also one that adds noise on the way.
    """
    if stage == "single":
        return model, None
    if stage == "low":

        def along(noisy: Tensor, timesteps: Tensor, _context: Tensor) -> Tensor:
            return _straight_to(latents, noisy, timesteps)

        return along, model
    last: dict[bool, Tensor] = {}

    def is_less() -> bool:
        return skipping is not None and skipping.is_on

    def remember(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        if not is_less():
            last.clear()
        velocity = model(noisy, timesteps, context)
        last[is_less()] = noisy - _sigmas(timesteps) * velocity
        return velocity

    def hold(noisy: Tensor, timesteps: Tensor, _context: Tensor) -> Tensor:
        return _straight_to(last.get(is_less(), last[False])[: noisy.shape[0]], noisy, timesteps)

    return remember, hold


def _straight_to(data: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """The velocity [B, C, F, H, W] of the line from noisy latents [B, C, F, H, W] to the data; timesteps [B] above 0."""
    return (noisy - data) / _sigmas(timesteps)


def _sigmas(timesteps: Tensor) -> Tensor:
    return (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1, 1)


class Preview:
    """A preview every `every` steps of the job's `previews`, and at the end.

    Whoever holds the lock of the folder decodes it with a VAE of its own: the run then waits for that, with as little as
    possible in its hands. Else the run decodes it, where the job names a VAE; else the latents are kept.
    """

    def __init__(
        self,
        folder: RunFolder,
        events: EventWriter,
        should_stop: Callable[[], bool],
        *,
        is_stopping: Callable[[], bool] | None = None,
        make_room: Callable[[], None] = lambda: None,
        is_shared: bool = False,
        took: Callable[[float], None] = lambda _seconds: None,
    ):
        """`make_room` gives the GPU's memory back that is not needed between two steps, for who decodes.

        `is_stopping`: whether all ranks of the run know that it shall stop; by default what `should_stop` says on this one.
        `is_shared`: all of them run the model together; else the first does alone, and the others wait for it. `took` is told
        the seconds of each that was made.
        """
        self._run, self._folder = folder.path, PreviewFolder.of(folder)
        self._events, self._should_stop = events, should_stop
        self._is_stopping = is_stopping or should_stop
        self._make_room, self._is_shared, self._took = make_room, is_shared, took
        self._warned: set[str] = set()

    def needs_weights(self, trainer: Trainer) -> bool:
        return _is_due(trainer.step, trainer.job)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if _is_due(report.step, trainer.job) and not self._is_stopping():
            self.make(trainer)

    def before_first_step(self, trainer: Trainer) -> None:
        """The preview of a run that begins, where the job wants one."""
        options = trainer.job.previews
        if options.every and options.at_start and trainer.step == 0 and not self._is_stopping():
            self.make(trainer)

    def make(self, trainer: Trainer) -> None:
        """The preview of the trainer's step, now."""
        with trainer.aside():
            self._make(trainer)

    def _make(self, trainer: Trainer) -> None:
        step, start, world = trainer.step, time.perf_counter(), trainer.team.world
        shots = self._readable(trainer, preview_shots(trainer.job, step))
        if not shots:
            return
        other, told = self._open_other(trainer)
        several = f" of {len(shots)} prompts" if len(shots) > 1 else ""
        self._events.write("status", message=f"step {step}: sampling a preview{several}{told}")
        is_busy = world.is_first or self._is_shared
        is_apart = not self._is_shared and _is_larger(shots, trainer.job)  # on all ranks alike: within it none votes
        with trainer.shown():
            act = partial(self._sample_or_tell, trainer, shots, other) if is_busy else _nothing
            latents = self._sample_if_it_fits(act, shots) if is_apart else trainer.attempt(act, step)
        if latents is not None and world.is_first:
            self._keep(trainer, shots, latents, start)
        world.wait_for_all()

    def _readable(self, trainer: Trainer, shots: Sequence[Shot]) -> list[Shot]:
        """Those whose texts are there: a cache may be emptied while a run goes on."""
        world = trainer.team.world
        are_there = world.from_first([self._has_texts(shot) for shot in shots] if world.is_first else None)
        return [shot for shot, is_there in zip(shots, are_there, strict=True) if is_there]

    def _has_texts(self, shot: Shot) -> bool:
        try:
            for path in [shot.text_path, *([shot.negative_path] if shot.sampling.cfg != 1.0 else [])]:
                load_context(path, f"the prompt {shown(shot.name)}" if shot.name else "a preview's caption")
        except DatasetError as error:
            self._warn(f"previews go on without this one: {error}")
            return False
        return True

    def _open_other(self, trainer: Trainer) -> tuple[OtherExpert | None, str]:
        """The expert that is not trained, with its newest LoRA, and a clause that says so; None where it is not there."""
        job, world = trainer.job, trainer.team.world
        if job.stage == "both":
            return None, ", through both experts"
        if job.other_expert is None:
            return None, ""
        beside = [(Path(job.previews.other_lora), 1.0)] if job.previews.other_lora else []
        found = world.from_first(newest_lora(self._run, job) if world.is_first else None)
        for path, step in (found, (None, 0)) if found else ((None, 0),):
            open_it = partial(open_other, job.other_expert, trainer.device, path, beside=beside)
            other, reason = self._open_on_all(trainer, open_it)
            if other is None:
                where = "alone" if path is None else f"without the other expert's LoRA {path.name}"
                self._warn(f"previews go through the {job.stage} noise expert {where}: {reason}")
                continue
            name = "plain" if path is None else f"with its LoRA of step {step}"
            name += f", {beside[0][0].name} on it" if beside else ""
            return other, f", through both experts (the other one {name})"
        return None, ""

    def _open_own(self, trainer: Trainer) -> OtherExpert | None:
        """The expert that is trained as it is in previews alone; None: as it is in training."""
        beside = beside_own(trainer.job)
        if beside is None:
            return None
        own, reason = self._open_on_all(trainer, partial(open_own, trainer.job, trainer.model, trainer.device, beside))
        if own is None:
            self._warn(f"previews are made with the model as it is in training, without preview_lora: {reason}")
        return own

    def _open_on_all(self, trainer: Trainer, open_it: Callable[[], OtherExpert]) -> tuple[OtherExpert | None, str]:
        """None where it can't be opened, with the reason. Ranks that run the model together have it all of them, or none."""
        found, reason = None, ""
        try:
            found = open_it()
        except (OSError, WanTrainError) as error:
            reason = first_line(error)
        reasons = trainer.team.world.tell(reason) if self._is_shared else [reason]
        first = next(filter(None, reasons), "")
        return (None if first else found), first

    def _sample_or_tell(
        self, trainer: Trainer, shots: Sequence[Shot], other: OtherExpert | None
    ) -> list[Tensor] | None:
        """As `_sample`; a file that is gone or was replaced costs the other expert, or this preview, and not the run."""
        for one in (other, None) if other is not None else (None,):
            try:
                return self._sample(trainer, shots, one)
            except (OSError, WanTrainError) as error:
                if self._is_shared or shortage_of(error):  # the other ranks are within the same forward
                    raise
                how = "are left out" if one is None else f"go through the {trainer.job.stage} noise expert alone"
                self._warn(f"previews {how}: {first_line(error)}")
        return None

    def _sample(self, trainer: Trainer, shots: Sequence[Shot], other: OtherExpert | None) -> list[Tensor] | None:
        """The latents of each; None where a stop was asked for meanwhile."""

        def on_step(_done: int, _total: int) -> None:
            should_stop = self._should_stop()
            if trainer.team.world.from_first(should_stop) if self._is_shared else should_stop:
                raise _BrokenOffError

        try:
            return sample_shots(trainer, shots, other=other, own=self._open_own(trainer), on_step=on_step)
        except _BrokenOffError:
            return None

    def _sample_if_it_fits(self, act: Callable[[], list[Tensor] | None], shots: Sequence[Shot]) -> list[Tensor] | None:
        """For videos that are larger than what is trained on: no reason to end a run, or to hold its model otherwise."""
        try:
            return act()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._make_room()
        free_caches()
        frames, height, width = clip_size(max((shot.shape for shot in shots), key=num_tokens))
        self._warn(
            f"previews of {width}x{height} with {counted(frames, 'frame')} do not fit into memory, and are left out: lower "
            "preview_width, preview_height or preview_frames."
        )
        return None

    def _keep(self, trainer: Trainer, shots: Sequence[Shot], latents: Sequence[Tensor], start: float) -> None:
        step = trainer.step
        try:
            paths = self._folder.write_all(step, latents, [Shown(shot.name, shot.prompt, shot.seed) for shot in shots])
        except RunError as error:
            self._warn(f"the preview of step {step} is not kept. {error}")
            return
        path = paths[0]
        self._make_room()
        is_awaited = self._folder.has_decoder()
        if not is_awaited:
            path = self._decode(trainer, step) or path
        seconds = round(time.perf_counter() - start, 3)
        shown_path = path.relative_to(self._folder.path.parent).as_posix()
        several = {"prompts": len(shots)} if len(shots) > 1 else {}
        self._events.write("preview", step=step, path=shown_path, seconds=seconds, **several)
        if is_awaited:
            self._await_decoder(step, WAIT_S * len(shots))
        seconds = time.perf_counter() - start
        self._events.write("shown", step=step, seconds=round(seconds, 3))
        self._took(seconds)

    def _decode(self, trainer: Trainer, step: int) -> Path | None:
        """The first video, or None: a preview that can't be shown is no reason to end a run."""
        job = trainer.job
        if not job.preview_vae:
            self._warn(
                f"previews are kept as latents in {self._folder.path}: no VAE is named that could decode them, and "
                "nobody who follows this run has one."
            )
            return None
        try:
            encoder = load_video_encoder(Path(job.preview_vae), trainer.device)
            paths = [
                write_video(self._folder.video_path(step, number), encoder.decode(latents).numpy(), job.data.fps)
                for number, latents in self._folder.read_all(step)
            ]
            return paths[0]
        except Exception as error:  # of files, packages and memory alike
            self._warn(
                f"previews are kept as latents in {self._folder.path}, as they can't be decoded: {first_line(error)}."
            )
            return None
        finally:
            free_caches()

    def _await_decoder(self, step: int, patience_s: float = WAIT_S) -> None:
        mark, end = self._folder.mark_path(step), time.monotonic() + patience_s
        with suppress(OSError):  # of a folder that has become somebody else's
            while not mark.exists() and time.monotonic() < end:
                if self._should_stop() or not self._folder.has_decoder():
                    return
                time.sleep(POLL_S)
            mark.unlink(missing_ok=True)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._events.write("warning", message=sentence)


def _nothing() -> None:
    """On a rank that waits for the first."""


def _is_larger(shots: Sequence[Shot], job: Job) -> bool:
    """Whether one of the videos has more tokens than all that is trained on and validated."""
    samples = (*job.training_samples, *job.held_out_samples)
    return max(num_tokens(shot.shape) for shot in shots) > max(num_tokens(sample.shape) for sample in samples)


def _is_due(step: int, job: Job) -> bool:
    every = job.previews.every
    return every > 0 and (step % every == 0 or step == job.loop.steps)

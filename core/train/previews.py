"""Previews of a run: a video sampled now and then with the LoRA as it is then, from what lies in the caches already.

Text, size, and the given frames of image-to-video are those of one sample; the noise is the same every time. An expert
makes its own part of the way from noise to video alone, and the rest is a straight line: see `experts`.

B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..encoders.vae import load_video_encoder
from ..errors import RunError
from ..facts import NUM_TIMESTEPS
from ..flow.objective import give_first_frame
from ..plan.recovery import first_line
from ..sample.previews import preview_sampling
from ..sample.sampler import OnStep, VelocityModel, initial_noise, sample
from ..settings.job import Job, Stage, TrainSample
from ..shortage import free_caches
from .batches import Batch, load_batch, load_context
from .events import EventWriter
from .loop import StepReport, Trainer
from .preview_folder import PreviewFolder, write_video
from .run_folder import RunFolder

PREVIEW_SEED = 1  # not the run's: runs with different seeds stay comparable
WAIT_S, POLL_S = 120.0, 0.1


class _BrokenOffError(Exception):
    """A stop was asked for while a preview was sampled."""


def preview_sample(job: Job) -> TrainSample:
    """The sample whose caption, size and given frames previews have: the first held-out one, else the first."""
    return (*job.held_out_samples, *job.training_samples)[0]


def preview_latents(trainer: Trainer, on_step: OnStep | None = None) -> Tensor:
    """Normalised latents [C, F, H, W] float32 on the CPU, by the weights as they are. The model is left in training.

    `on_step` may raise to end it.
    """
    job, device = trainer.job, trainer.device
    chosen = preview_sample(job)
    batch = load_batch([chosen], [chosen.text_path], job.data.conditioning).map(lambda tensor: tensor.to(device))
    noise = initial_noise(tuple(batch.latents.shape), PREVIEW_SEED).to(device)
    negative = None
    if job.previews.cfg != 1.0:
        negative = load_context(job.data.empty_text_path, "the empty caption")[None].to(device)
    boundary = job.timesteps.sigma_min if job.stage == "high" else job.timesteps.sigma_max
    high, low = experts(job.stage, velocity_model(trainer, batch), batch.latents, noise)
    trainer.model.eval()
    try:
        options = preview_sampling(job, boundary)
        return sample(high, low, noise, batch.context, negative, options, on_step)[0].cpu()
    finally:
        trainer.model.train()


def velocity_model(trainer: Trainer, batch: Batch) -> VelocityModel:
    """The trainer's model as the sampler calls it, given what `batch`, of one sample, is given besides text.

    It runs sample by sample, as guidance would else double the memory that a forward takes.
    """
    given = batch.images

    def velocity(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        rows = zip(latents.split(1), timesteps.split(1), context.split(1), strict=True)
        return torch.cat([one(*row) for row in rows])

    def one(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        if not trainer.given_frames:
            return trainer.model(latents, timesteps, context, **given).float()
        noisy, by_frame = give_first_frame(latents, batch.latents, timesteps)
        velocity = trainer.model(noisy, by_frame, context).float()
        sigmas = (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1, 1)
        velocity[:, :, :1] = (latents[:, :, :1] - batch.latents[:, :, :1]) / sigmas  # straight to the given frame
        return velocity

    return velocity


def experts(
    stage: Stage, model: VelocityModel, latents: Tensor, noise: Tensor
) -> tuple[VelocityModel, VelocityModel | None]:
    """Who leads above the boundary, and who below, where `model` is the stage's; None: `model` leads all the way.

    High: below the boundary its last velocity v is held, which ends at its estimate of the video, x - sigma v. Low:
    above the boundary the way is that of the sample's own `latents` and `noise`, [1, C, F, H, W] both. Under Euler's
    steps both lines are followed exactly.
    """
    if stage == "single":
        return model, None
    if stage == "low":
        straight = noise - latents
        return lambda noisy, _timesteps, _context: straight.expand_as(noisy), model
    last: list[Tensor] = []

    def remember(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        last[:] = [model(noisy, timesteps, context)]
        return last[0]

    return remember, lambda _noisy, _timesteps, _context: last[0]


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
    ):
        """`make_room` gives the GPU's memory back that is not needed between two steps, for who decodes.

        `is_stopping`: whether all ranks of the run know that it shall stop; by default what `should_stop` says on this one.
        `is_shared`: all of them run the model together; else the first does alone, and the others wait for it.
        """
        self._folder = PreviewFolder.of(folder)
        self._events, self._should_stop = events, should_stop
        self._is_stopping = is_stopping or should_stop
        self._make_room, self._is_shared = make_room, is_shared
        self._warned: set[str] = set()

    def needs_weights(self, trainer: Trainer) -> bool:
        return _is_due(trainer.step, trainer.job)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if _is_due(report.step, trainer.job) and not self._is_stopping():
            self.make(trainer)

    def make(self, trainer: Trainer) -> None:
        """The preview of the trainer's step, now."""
        step, start, world = trainer.step, time.perf_counter(), trainer.team.world
        self._events.write("status", message=f"step {step}: sampling a preview")
        is_busy = world.is_first or self._is_shared
        with trainer.shown():
            latents = trainer.attempt(partial(self._sample, trainer) if is_busy else _nothing, step)
        if latents is not None and world.is_first:
            self._keep(trainer, latents, start)
        world.wait_for_all()

    def _sample(self, trainer: Trainer) -> Tensor | None:
        """The latents; None where a stop was asked for meanwhile."""

        def on_step(_done: int, _total: int) -> None:
            should_stop = self._should_stop()
            if trainer.team.world.from_first(should_stop) if self._is_shared else should_stop:
                raise _BrokenOffError

        try:
            return preview_latents(trainer, on_step)
        except _BrokenOffError:
            return None

    def _keep(self, trainer: Trainer, latents: Tensor, start: float) -> None:
        step = trainer.step
        try:
            path = self._folder.write(step, latents)
        except RunError as error:
            self._warn(f"the preview of step {step} is not kept. {error}")
            return
        self._make_room()
        is_awaited = self._folder.has_decoder()
        if not is_awaited:
            path = self._decode(trainer, step) or path
        seconds = round(time.perf_counter() - start, 3)
        shown_path = path.relative_to(self._folder.path.parent).as_posix()
        self._events.write("preview", step=step, path=shown_path, seconds=seconds)
        if is_awaited:
            self._await_decoder(step)

    def _decode(self, trainer: Trainer, step: int) -> Path | None:
        """The video, or None: a preview that can't be shown is no reason to end a run."""
        job = trainer.job
        if not job.preview_vae:
            self._warn(
                f"previews are kept as latents in {self._folder.path}: no VAE is named that could decode them, and "
                "nobody who follows this run has one."
            )
            return None
        try:
            frames = load_video_encoder(Path(job.preview_vae), trainer.device).decode(self._folder.read(step))
            return write_video(self._folder.video_path(step), frames.numpy(), job.data.fps)
        except Exception as error:  # of files, packages and memory alike
            self._warn(
                f"previews are kept as latents in {self._folder.path}, as they can't be decoded: {first_line(error)}."
            )
            return None
        finally:
            free_caches()

    def _await_decoder(self, step: int) -> None:
        mark, end = self._folder.mark_path(step), time.monotonic() + WAIT_S
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


def _is_due(step: int, job: Job) -> bool:
    every = job.previews.every
    return every > 0 and (step % every == 0 or step == job.loop.steps)

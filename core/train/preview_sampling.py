"""How a preview is sampled: the trained model and, of two experts, the other one, along the sampler's steps.

An expert whose other one is not known makes its own part of the way from noise to video alone, and the rest is a straight
line: see `experts`.

B samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..facts import EXPERTS, NUM_TIMESTEPS, Expert
from ..flow.objective import give_first_frame
from ..sample.previews import Shot, preview_sample, preview_shots, sampled_together
from ..sample.sampler import OnStep, VelocityModel, initial_noise, sample
from ..settings.job import Stage
from .batches import Batch, load_batch, load_context
from .loop import Trainer
from .other_expert import OtherExpert
from .skip_blocks import block_numbers, without_blocks


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

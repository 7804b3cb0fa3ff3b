"""The training loop. It reads like the paper; everything that is not the paper is a callback."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import RunError
from ..flow.objective import NUM_TIMESTEPS, add_noise, flow_loss, give_first_frame, sample_noise, velocity_target
from ..flow.random import stream_seed
from ..flow.sigmas import sample_sigmas
from .batches import Batch
from .job import Job
from .schedule import learning_rate_scale


@dataclass(frozen=True)
class StepReport:
    """What one optimizer update did."""

    step: int  # number of updates made, this one included
    loss: float  # mean over the samples of the step
    grad_norm: float  # before clipping
    learning_rate: float
    sigma: float  # mean noise level


class Callback(Protocol):
    """Something done between two steps. May raise to end the run."""

    def __call__(self, trainer: "Trainer", report: StepReport, /) -> None:
        """Called after every update."""
        ...


class Batches(Protocol):
    """Gives batch number `index`."""

    def get(self, index: int) -> Batch:
        """The batch."""
        ...


class Trainer:
    """Trains `parameters` of `model`; `step` counts the updates made so far."""

    def __init__(
        self,
        job: Job,
        *,
        model: torch.nn.Module,  # (noisy latents, timesteps, context) -> velocity
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        callbacks: Sequence[Callback] = (),
    ):
        self.job = job
        self.model = model
        self.parameters = parameters
        self.optimizer = optimizer
        self.batches = batches
        self.callbacks = callbacks
        self.device = parameters[0].device
        self.given_frames = int(job.data.gives_first_frame)  # latent frames that the model is given clean
        self.step = 0

    def train(self) -> None:
        """Run to the job's last step."""
        while self.step < self.job.loop.steps:
            report = self.train_step()
            for callback in self.callbacks:
                callback(self, report)

    def train_step(self) -> StepReport:
        """One optimizer update over `gradient_accumulation` batches."""
        loop = self.job.loop
        losses, sigmas = [], []
        for micro in range(loop.gradient_accumulation):
            index = self.step * loop.gradient_accumulation + micro
            loss, sigma = self.compute_loss(self.batches.get(index), index)  # [B], [B]
            (loss.mean() / loop.gradient_accumulation).backward()
            losses.append(loss.detach())
            sigmas.append(sigma)
        grad_norm = self._clip_gradients()
        mean_loss = torch.cat(losses).mean().item()
        if not (torch.isfinite(grad_norm) and mean_loss == mean_loss):
            raise RunError(
                f"the loss is not finite at step {self.step + 1} (loss {mean_loss}, gradient norm {grad_norm.item()}): "
                "lower learning_rate, or choose fp32 precision; the last checkpoint is kept."
            )
        learning_rate = self._set_learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return StepReport(self.step, mean_loss, grad_norm.item(), learning_rate, torch.cat(sigmas).mean().item())

    def compute_loss(self, batch: Batch, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss [B] on the device and sigmas [B] on the CPU; all randomness is a function of (seed, index)."""
        job, num_samples = self.job, batch.latents.shape[0]
        first_draw = index * job.loop.batch_size
        sigmas = sample_sigmas(job.timesteps, seed=job.loop.seed, first_draw=first_draw, count=num_samples)
        noise = torch.stack(
            [sample_noise(z.shape, seed=job.loop.seed, draw=first_draw + i) for i, z in enumerate(batch.latents)]
        )
        torch.manual_seed(stream_seed(job.loop.seed, "dropout", index))
        return self.loss_at(batch, noise, sigmas), sigmas

    def loss_at(self, batch: Batch, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """Flow-matching loss [B] of a batch at given noise [B, C, F, H, W] and sigmas [B]."""
        latents, context = batch.latents.to(self.device), batch.context.to(self.device)
        noise, sigmas = noise.to(self.device), sigmas.to(self.device)
        noisy_latents, timesteps = add_noise(latents, noise, sigmas), sigmas * NUM_TIMESTEPS
        target = velocity_target(latents, noise)
        if self.given_frames:
            noisy_latents, timesteps = give_first_frame(noisy_latents, latents, timesteps)
        pred = self.model(noisy_latents, timesteps, context, **self._image_inputs(batch))
        return flow_loss(pred, target, given_frames=self.given_frames)

    def _image_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What an image-to-video model is given besides; nothing for the others."""
        given = {"conditioning": batch.conditioning, "clip_features": batch.clip_features}
        return {name: tensor.to(self.device) for name, tensor in given.items() if tensor is not None}

    def _clip_gradients(self) -> torch.Tensor:
        limit = self.job.optimizer.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else float("inf"))

    def _set_learning_rate(self) -> float:
        scale = learning_rate_scale(self.step, self.job.loop.steps, self.job.schedule)
        learning_rate = self.job.optimizer.learning_rate * scale
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

"""The training loop. It reads like the paper; everything that is not the paper is a callback.

Nothing in a step waits for the device: its numbers come back while the next step runs, and a loss or gradient that is
not finite is kept from the weights on the device itself.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from ..errors import RunError
from ..facts import NUM_TIMESTEPS
from ..flow.objective import add_noise, flow_loss, give_first_frame, velocity_target
from ..flow.random import stream_seed
from ..settings.job import Job
from ..torch_compat import foreach_mul_
from .batches import Batch, make_draws
from .optimizers import update_if
from .schedule import learning_rate_scale


@dataclass(frozen=True)
class StepReport:
    """What one optimizer update did."""

    step: int  # number of updates made, this one included
    loss: float  # mean over the samples of the step
    grad_norm: float  # before clipping
    learning_rate: float
    sigma: float  # mean noise level
    seconds: float  # from its start to its end, on the device's clock
    tokens: int = 0  # of the video, in all its batches


class Moment:
    """When the device gets to what it is given now, which the host may be ahead of."""

    def __init__(self, device: torch.device):
        self._event: torch.cuda.Event | None = None
        self._time = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._time = time.perf_counter()

    def is_over(self) -> bool:
        """Whether the device is there."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Until the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, other: "Moment") -> float:
        """Both of one device, and over."""
        if self._event is None or other._event is None:
            return self._time - other._time
        return other._event.elapsed_time(self._event) / 1000


class PendingReport:
    """The report of a step that the device may still be busy with."""

    def __init__(self, step: int, learning_rate: float, numbers: torch.Tensor, start: Moment, tokens: int = 0):
        """`numbers`: loss, gradient norm and mean sigma, [3] on the device. `start`: of the step, which ends now."""
        self._step, self._learning_rate, self._tokens = step, learning_rate, tokens
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(3, pin_memory=True).copy_(numbers, non_blocking=True)
        self._start, self._end = start, Moment(numbers.device)

    def is_ready(self) -> bool:
        """Whether `read` would not have to wait."""
        return self._end.is_over()

    def read(self) -> StepReport:
        """Wait for the numbers. RunError if the loss or the gradients were not finite: the update was not made then."""
        self._end.wait()
        loss, grad_norm, sigma = self._numbers.tolist()
        if not self._numbers.isfinite().all():
            raise RunError(
                f"the loss is not finite at step {self._step} (loss {loss}, gradient norm {grad_norm}): "
                "lower learning_rate, or choose fp32 precision; the last checkpoint is kept."
            )
        seconds = self._end.seconds_since(self._start)
        return StepReport(self._step, loss, grad_norm, self._learning_rate, sigma, seconds, self._tokens)


class Callback(Protocol):
    """Something done after an update. May raise to end the run."""

    def needs_weights(self, trainer: "Trainer", /) -> bool:
        """Whether it acts on the weights of the trainer's step: the loop then waits for the device before it goes on."""
        ...

    def __call__(self, trainer: "Trainer", report: StepReport, /) -> None:
        """Called after every update, in order. Where no callback needs the weights, the trainer may be one step on."""
        ...


T = TypeVar("T")


class Attempt(Protocol):
    """How an act is done that may run out of memory; see `core.plan.recovery`."""

    def __call__(self, act: Callable[[], T], step: int, /) -> T:
        """What `act` returns, which is done after `step` updates."""
        ...


def attempt_once(act: Callable[[], T], _step: int) -> T:
    """Just do it."""
    return act()


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
        loss_scale: float = 1.0,  # a power of two that gradients are computed at, where fp16 would lose small ones
    ):
        self.job = job
        self.model = model
        self.parameters = parameters
        self.optimizer = optimizer
        self.batches = batches
        self.callbacks = callbacks
        self.loss_scale = loss_scale
        self.device = parameters[0].device
        self.given_frames = int(job.data.gives_first_frame)  # latent frames that the model is given clean
        self.step = 0
        self.attempt: Attempt = attempt_once

    def train(self) -> None:
        """Run to the job's last step."""
        late: PendingReport | None = None
        while self.step < self.job.loop.steps:
            pending = self.attempt(self.train_step, self.step)
            if late is not None:
                self._call_back(late)
            late = pending
            if pending.is_ready() or any(callback.needs_weights(self) for callback in self.callbacks):
                self._call_back(pending)
                late = None
        if late is not None:
            self._call_back(late)

    def train_step(self) -> PendingReport:
        """One optimizer update over `gradient_accumulation` batches, without waiting for the device.

        The loss is the mean over the samples of the step, whatever the sizes of its batches.
        """
        start, num_batches = Moment(self.device), self.job.loop.gradient_accumulation
        losses, sigmas, tokens = [], [], 0
        for index in range(self.step * num_batches, (self.step + 1) * num_batches):
            batch = self.batches.get(index)
            tokens += batch.num_tokens
            loss, sigma = self.compute_loss(batch, index)  # [B], [B]
            losses.append(loss.detach())
            sigmas.append(sigma)
            weight = len(loss) / len(losses[0])  # of the batch, beside the step's first
            (loss.mean() / (num_batches / weight) * self.loss_scale).backward()
            del loss  # its graph must not last into the next forward, which may be recorded
        self._scale_gradients(num_batches * len(losses[0]) / sum(map(len, losses)) / self.loss_scale)
        grad_norm = self._clip_gradients()
        mean_loss = torch.cat(losses).mean()
        learning_rate = self._set_learning_rate()
        # Before the update, after which nothing may run out of memory: the step could not be done again.
        numbers = torch.stack([mean_loss, grad_norm, torch.cat(sigmas).mean()])
        update_if(grad_norm.isfinite() & mean_loss.isfinite(), self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return PendingReport(self.step, learning_rate, numbers, start, tokens)

    def compute_loss(self, batch: Batch, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss [B] and sigmas [B] on the device; all randomness is a function of (seed, index)."""
        draws = batch.draws or make_draws(self.job, batch, index)
        torch.manual_seed(stream_seed(self.job.loop.seed, "dropout", index))
        sigmas = draws.sigmas.to(self.device)
        return self.loss_at(batch, draws.noise, sigmas), sigmas

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

    def _call_back(self, pending: PendingReport) -> None:
        report = pending.read()
        for callback in self.callbacks:
            callback(self, report)

    def _image_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What an image-to-video model is given besides; nothing for the others."""
        given = {"conditioning": batch.conditioning, "clip_features": batch.clip_features}
        return {name: tensor.to(self.device) for name, tensor in given.items() if tensor is not None}

    def _scale_gradients(self, factor: float) -> None:
        if factor != 1.0:  # batches of different sizes, or a loss scale
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            foreach_mul_(gradients, factor)  # as clip_grad_norm_ does

    def _clip_gradients(self) -> torch.Tensor:
        limit = self.job.optimizer.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else float("inf"))

    def _set_learning_rate(self) -> float:
        scale = learning_rate_scale(self.step, self.job.loop.steps, self.job.schedule)
        learning_rate = self.job.optimizer.learning_rate * scale
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

"""The training loop. It reads like the paper; everything that is not the paper is a callback.

Nothing in a step waits for the device: its numbers come back while the next step runs, and a loss or gradient that is
not finite is kept from the weights on the device itself.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

import torch

from ..adapters.switch import without_adapter
from ..errors import RunError
from ..facts import SIGMA_BINS, Expert
from ..flow.random import stream_seed
from ..objective.forwards import Forwards, NoisyBatch, noisy_batch
from ..objective.objective import Objective, learnt_of, objective_of
from ..settings.job import Job
from ..torch_compat import foreach_mul_
from .adaptive import adaptive_weight
from .batches import Batch, load_context, make_draws
from .joining import in_groups, join
from .numbers import StepNumbers
from .optimizers import Undo, clip_gradients, set_learning_rate, update_if
from .regularizers import after_updates
from .schedule import learning_rate_scale
from .team import Alone, Team


@dataclass(frozen=True)
class StepReport:
    """What one optimizer update did."""

    step: int  # number of updates made, this one included
    loss: float  # what is minimised, the mean over the samples of the step
    grad_norm: float  # before clipping
    learning_rate: float
    sigma: float  # mean noise level
    seconds: float  # from its start to its end, on the device's clock
    tokens: int = 0  # of the video, in all its batches
    terms: Mapping[str, float] = field(
        default_factory=dict
    )  # means of the loss's terms, before their weights; none of one
    bins: tuple[tuple[int, float, int], ...] = ()  # bin of sigma (see facts.SIGMA_BINS), its mean loss, its samples


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

    def __init__(self, step: int, learning_rate: float, numbers: StepNumbers, undo: Undo, start: Moment):
        """`start`: of the step, which ends now. `undo`: for the host to do, where the update was not made."""
        self._step, self._learning_rate, self._tokens = step, learning_rate, numbers.tokens
        self._names, self._numbers = numbers.names, numbers.stacked
        device = self._numbers.device
        if self._numbers.is_cuda:
            self._numbers = torch.empty(len(self._numbers), pin_memory=True).copy_(self._numbers, non_blocking=True)
        self._undo, self._start, self._end = undo, start, Moment(device)

    def is_ready(self) -> bool:
        """Whether `read` would not have to wait."""
        return self._end.is_over()

    def read(self) -> StepReport:
        """Wait for the numbers. RunError if the loss or the gradients were not finite: the update was not made then."""
        self._end.wait()
        loss, grad_norm, sigma, *more = self._numbers.tolist()
        sums, counts, terms = more[:SIGMA_BINS], more[SIGMA_BINS : 2 * SIGMA_BINS], more[2 * SIGMA_BINS :]
        if not self._numbers[:3].isfinite().all():
            self._undo()
            raise RunError(
                f"the loss is not finite at step {self._step} (loss {loss}, gradient norm {grad_norm}): "
                "lower learning_rate, or choose fp32 precision; the last checkpoint is kept."
            )
        seconds = self._end.seconds_since(self._start)
        named = {name: term for name, term in zip(self._names, terms, strict=True) if not math.isnan(term)}
        named = named if len(named) > 1 else {}  # of several ranks, none had some
        pairs = enumerate(zip(sums, counts, strict=True))
        bins = tuple((place, total / count, int(count)) for place, (total, count) in pairs if count)
        rate, tokens = self._learning_rate, self._tokens
        return StepReport(self._step, loss, grad_norm, rate, sigma, seconds, tokens, named, bins)


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


def _have_one_model(_expert: Expert | None) -> None:
    """The weights of a run's only model are always there."""


class AfterUpdate(Protocol):
    """A part of the step that follows the update, on the device alone: an average of the weights, say.

    It must not wait for the device, and must not run out of memory: the step could not be done again. One with a state is
    a `core.train.state.Stateful`, too, and in the table that checkpoints keep.
    """

    def __call__(self, was_made: torch.Tensor, /) -> None:
        """`was_made`: whether the update was, one bool on the device; where not, nothing must change."""
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
        loss_scale: float = 1.0,  # a power of two that gradients are computed at, where fp16 would lose small ones
        team: Team | None = None,  # the ranks that train together; None: this one alone
    ):
        self.job = job
        self.model = model
        self.parameters = parameters
        self.optimizer = optimizer
        self.batches = batches
        self.callbacks = callbacks
        self.loss_scale = loss_scale
        self.team = team or Alone(job.loop.gradient_accumulation)
        self.device = parameters[0].device
        self.given_frames = int(job.data.gives_first_frame)  # latent frames that the model is given clean
        self.step = 0
        self.joined = 1  # batches of a step that go through the model together
        self.attempt: Attempt = attempt_once
        self.use_expert: Callable[[Expert | None], object] = _have_one_model  # have this expert's weights in the model
        self.objective: Objective = objective_of(job)
        self.learnt: Objective = learnt_of(job)  # what validation looks at
        self.adaptive = adaptive_weight(job, self.device)  # of output preservation; None: its weight stays as chosen
        self.after_update: list[AfterUpdate] = [*after_updates(job, model)]
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext  # around what is done between steps
        self.shown: Callable[[], AbstractContextManager[None]] = nullcontext  # within it: the weights that a run shows
        self.forwards = Forwards(
            model,
            without_adapter=partial(without_adapter, model),
            load_empty_context=partial(load_context, job.data.empty_text_path, "the empty caption"),
        )

    def train(self) -> None:
        """Run to the job's last step."""
        late: PendingReport | None = None
        while self.step < self.job.loop.steps:
            self.use_expert(self.job.expert_at(self.step))
            pending = self.attempt(self.team.watched(self.train_step), self.step)
            if late is not None:
                self._call_back(late)
            late = pending
            is_awaited = any(callback.needs_weights(self) for callback in self.callbacks)
            if self.team.agree(pending.is_ready() or is_awaited):
                self._call_back(pending)
                late = None
        if late is not None:
            self._call_back(late)

    def train_step(self) -> PendingReport:
        """One optimizer update over `gradient_accumulation` batches, without waiting for the device.

        The loss is the mean over the samples of the step, whatever the sizes of its batches, and whoever trains them.
        """
        start, numbers, num_batches = Moment(self.device), StepNumbers(), self.job.loop.gradient_accumulation
        dealt = self.team.deal(self.step)
        with self.team.adding_up(dealt):
            for indices in in_groups(dealt.indices, self.joined):
                batch = self.batch_of(indices)
                noisy = self.add_noise(batch, indices[0])
                numbers.begin(batch, noisy.sigmas)
                first = (dealt.sizes or numbers.sizes)[0]
                share = num_batches / (numbers.sizes[-1] / first)  # of the batch, beside the step's first
                groups = self.objective.terms(noisy, self.forwards)
                while terms := next(groups, None):
                    loss = numbers.add(terms if self.adaptive is None else self.adaptive.weighed(terms))  # [B]
                    if batch.loss_weights is not None:
                        loss = loss * batch.loss_weights.to(loss)
                    (loss.mean() / share * self.loss_scale).backward()
                    del terms, loss  # their graph must not last into the next forward, which may be recorded
        numbers = self.team.whole(numbers, dealt)
        self._scale_gradients(num_batches * numbers.sizes[0] / sum(numbers.sizes) / self.loss_scale)
        grad_norm = clip_gradients(self.parameters, self.job.optimizer)
        learning_rate = self._set_learning_rate()
        # Before the update, after which nothing may run out of memory: the step could not be done again.
        is_good = numbers.finish(grad_norm)
        undo = update_if(is_good, self.optimizer)
        for act in self.after_update:
            act(is_good)
        if self.adaptive is not None:
            self.adaptive.follow(numbers.mean_of(self.adaptive.name), is_good)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return PendingReport(self.step, learning_rate, numbers, undo, start)

    def batch_of(self, indices: Sequence[int]) -> Batch:
        """Batches of one shape, which go through the model together, each with its own draws."""
        if len(indices) == 1:
            return self.batches.get(indices[0])
        found = [(index, self.batches.get(index)) for index in indices]
        return join(
            [b if b.draws is not None else replace(b, draws=make_draws(self.job, b, index)) for index, b in found]
        )

    def add_noise(self, batch: Batch, index: int) -> NoisyBatch:
        """Batch number `index` at its noise; all randomness of it, dropout too, is a function of (seed, index)."""
        draws = batch.draws or make_draws(self.job, batch, index)
        torch.manual_seed(stream_seed(self.job.loop.seed, "dropout", index))
        noisy = self.noisy_at(batch, draws.noise, draws.sigmas)
        kept = None if draws.kept_tokens is None else draws.kept_tokens.to(self.device)
        return replace(noisy, kept_tokens=kept, rollouts=draws.rollouts)

    def noisy_at(self, batch: Batch, noise: torch.Tensor, sigmas: torch.Tensor) -> NoisyBatch:
        """A batch at given noise [B, C, F, H, W] and sigmas [B], on the device."""
        images = {name: tensor.to(self.device) for name, tensor in batch.images.items()}
        latents, context = batch.latents.to(self.device), batch.context.to(self.device)
        noise, sigmas = noise.to(self.device), sigmas.to(self.device)
        masks = None if batch.masks is None else batch.masks.to(self.device)
        noisy = noisy_batch(latents, noise, sigmas, context, images, given_frames=self.given_frames, masks=masks)
        if batch.features is not None:
            noisy = replace(noisy, features=batch.features.to(self.device))
        if batch.priors is not None:
            noisy = replace(noisy, priors=batch.priors.to(self.device))
        of_class = batch.of_class
        return noisy if of_class is None else replace(noisy, of_class=of_class.map(lambda t: t.to(self.device)))

    def loss_at(self, batch: Batch, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """The loss [B] of what is learnt, without regularisers, at given noise [B, C, F, H, W] and sigmas [B]."""
        groups = self.learnt.terms(self.noisy_at(batch, noise, sigmas), self.forwards)
        learnt, *_ = next(groups)
        return learnt.losses

    def _call_back(self, pending: PendingReport) -> None:
        progress = self.team.world.progress
        with progress.waiting():
            report = pending.read()
        progress.ended(report.tokens)
        for callback in self.callbacks:
            callback(self, report)

    def _scale_gradients(self, factor: float) -> None:
        if factor != 1.0:  # batches of different sizes, or a loss scale
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            foreach_mul_(gradients, factor)  # as clip_grad_norm_ does

    def _set_learning_rate(self) -> float:
        scale = learning_rate_scale(self.step, self.job.loop.steps, self.job.schedule)
        learning_rate = self.job.optimizer.learning_rate * scale
        set_learning_rate(self.optimizer, learning_rate)
        return learning_rate

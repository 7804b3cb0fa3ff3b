"""Scheduled sampling: the model goes some way by itself, and is trained where it gets to.

After SimpleTuner (simpletuner/helpers/scheduled_sampling/plan.py and rollout.py, bc8e6ab). B batch, C channels, F latent
frames, H W latent size.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..facts import NUM_TIMESTEPS
from ..flow.objective import add_noise, give_first_frame
from ..flow.random import stream
from ..settings.job import Job
from ..settings.rollout import RolloutOptions
from .forwards import Forwards, NoisyBatch
from .passes import Pass

_LAST = NUM_TIMESTEPS - 1  # the grid has as many steps: level m is the noise m / 999, at the timestep m


def draw_rollouts(job: Job, sigmas: Tensor, *, index: int, first_draw: int) -> tuple[tuple[int, int], ...]:
    """Levels at which the rollout of each sample begins and ends, for noise levels `sigmas` [B] of batch number `index`.

    A function of (seed, draw) and the step alone. Equal: no rollout. () where the job has none. It begins within the window of
    the stage: an expert is not asked beyond its own noise levels.
    """
    options = job.rollout
    if not options.steps:
        return ()
    chance = chance_at(options, index // job.loop.gradient_accumulation)
    highest = int(_LAST * job.timesteps_at(index).sigma_max)
    found: list[tuple[int, int]] = []
    for number, sigma in enumerate(map(float, sigmas)):
        chosen, length = map(float, torch.rand(2, generator=stream(job.loop.seed, "rollout", first_draw + number)))
        end = min(int(sigma * NUM_TIMESTEPS), _LAST)
        offset = num_steps(options, length) if chosen < chance else 0
        found.append((max(end, min(end + offset, highest)), end))
    return tuple(found)


def chance_at(options: RolloutOptions, step: int) -> float:
    """Of a rollout, after `step` updates."""
    reached = min(1.0, step / options.ramp_steps) if options.ramp_steps else 1.0
    return options.probability * reached


def num_steps(options: RolloutOptions, draw: float) -> int:
    """Steps of a rollout, by a draw from [0, 1)."""
    if options.strategy == "uniform":
        return int(draw * (options.steps + 1))
    share = draw**2 if options.strategy == "biased_early" else 1 - draw**2
    return round(share * options.steps)


class RollOut:
    """Euler's steps of the model itself before a batch is trained. The target stays n - z.

    x = (1 - j/999) z + (j/999) n at the level j where a rollout begins; x = x - v(x, m) / 999 for m = j ... i + 1.
    """

    def __init__(self, options: RolloutOptions) -> None:
        self._options = options

    @property
    def passes(self) -> tuple[Pass, ...]:
        """As many forwards as there are in the mean."""
        options, count = self._options, 1000
        mean = sum(num_steps(options, (number + 0.5) / count) for number in range(count)) / count
        return ("forward without gradient",) * math.ceil(mean * options.probability)

    def __call__(self, noisy: NoisyBatch, forwards: Forwards) -> NoisyBatch:
        """The batch with its noisy latents, timesteps and sigmas after the rollouts."""
        if all(begin == end for begin, end in noisy.rollouts):
            return noisy
        samples = [
            _rolled(noisy.of_sample(number), begin, end, forwards.peek) if begin > end else noisy.of_sample(number)
            for number, (begin, end) in enumerate(noisy.rollouts)
        ]
        return replace(
            noisy,
            noisy_latents=torch.cat([each.noisy_latents for each in samples]),
            timesteps=torch.cat([each.timesteps for each in samples]),
            sigmas=torch.cat([each.sigmas for each in samples]),
        )


def _rolled(sample: NoisyBatch, begin: int, end: int, velocity: Callable[[NoisyBatch], Tensor]) -> NoisyBatch:
    """One sample, taken by the model from the level `begin` to `end`."""
    x = add_noise(sample.latents, sample.noise, torch.full_like(sample.sigmas, begin / _LAST))
    at = _at(sample, x, begin)
    for level in range(begin, end, -1):
        x = x + ((level - 1) / _LAST - level / _LAST) * velocity(at).to(x)
        at = _at(sample, x, level - 1)
    return at


def _at(sample: NoisyBatch, x: Tensor, level: int) -> NoisyBatch:
    """The sample with noisy latents x [1, C, F, H, W] at a level of the grid."""
    sigmas = torch.full_like(sample.sigmas, level / _LAST)
    timesteps = torch.full_like(sample.sigmas, float(level))
    if sample.given_frames:
        x, timesteps = give_first_frame(x, sample.latents, timesteps)
    return replace(sample, noisy_latents=x, timesteps=timesteps, sigmas=sigmas)


def direction_loss(pred: Tensor, noisy: NoisyBatch) -> Tensor:
    """|pred/|pred| - d/|d||^2 of each sample [B] float32, d = x - z: where the noisy latents lie, seen from the clean ones.

    ReflexFlow's anti-drift as SimpleTuner has it (simpletuner/helpers/models/common.py). Given frames are left out.
    """
    away = (noisy.noisy_latents - noisy.latents)[:, :, noisy.given_frames :].flatten(1).float()
    found = pred[:, :, noisy.given_frames :].flatten(1).float()
    difference = functional.normalize(found, dim=1, eps=1e-6) - functional.normalize(away, dim=1, eps=1e-6)
    return difference.square().sum(1)

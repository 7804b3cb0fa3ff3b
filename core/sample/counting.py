"""How often sampling calls its models: found by sampling one number, whatever the sampler, the scheduler and guidance."""

from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..facts import NUM_TIMESTEPS
from .sampler import SampleOptions, sample


class Calls(NamedTuple):
    """Of one model."""

    times: int = 0
    forwards: int = 0  # each of one sample: guidance has two in a call


@lru_cache
def calls_of(options: SampleOptions, *, samples: int = 1, has_experts: bool) -> tuple[Calls, Calls]:
    """Of the high noise expert and of the low one, to sample so many at once; a single model makes all calls of the first.

    ConfigError for steps that the sampler can't make.
    """
    high, low = _Counted(), _Counted()
    noise, text = torch.ones(samples, 1, 1, 1, 1), torch.zeros(1, 1, 1)
    sample(high, low if has_experts else None, noise, text, text, options, skipping=nullcontext)
    return high.calls, low.calls


class _Counted:
    """A model that leads straight to zero, and counts."""

    def __init__(self) -> None:
        self.calls = Calls()

    def __call__(self, latents: Tensor, timesteps: Tensor, _context: Tensor) -> Tensor:
        self.calls = Calls(self.calls.times + 1, self.calls.forwards + latents.shape[0])
        return latents / (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1, 1)

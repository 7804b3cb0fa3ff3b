"""Euler's method a little too far, and new noise back up to the sigma: sample_euler_ancestral_RF, with eta 1."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise
from ._sde import ancestral_of_flow


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = fresh_noise(latents, walk.seeds)
    for here, there in pairwise(walk.sigmas):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            down, scale, amount = ancestral_of_flow(here, there)
            latents = down / here * latents + (1 - down / here) * data
            latents = scale * latents + noise() * amount
        yield latents


METHOD = Sampler(help="euler with new noise at each step: more detail, less alike from run to run", path=_path)

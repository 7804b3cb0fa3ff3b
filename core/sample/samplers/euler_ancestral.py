"""Euler's method a little too far, and new noise back up to the sigma: sample_euler_ancestral_RF, with eta 1."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = fresh_noise(latents, walk.seeds)
    for here, there in pairwise(walk.sigmas):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            down = there * (there / here)
            rest, rest_down = 1 - there, 1 - down  # of the data in latents of these sigmas
            amount = (there**2 - down**2 * rest**2 / rest_down**2) ** 0.5
            latents = down / here * latents + (1 - down / here) * data
            latents = rest / rest_down * latents + noise() * amount
        yield latents


METHOD = Sampler(help="euler with new noise at each step: more detail, less alike from run to run", path=_path)

"""The steps of consistency models (Luo et al. 2023, arXiv:2310.04378): to the data, and new noise up to the next sigma."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = fresh_noise(latents, walk.seeds)
    for here, there in pairwise(walk.sigmas):
        latents = walk.data(latents, here)
        if there > 0:
            latents = there * noise() + (1.0 - there) * latents
        yield latents


METHOD = Sampler(
    help="for LoRAs of few steps (preview_lora) with 4 to 8 steps and preview_cfg 1", path=_path, takes_equal=True
)

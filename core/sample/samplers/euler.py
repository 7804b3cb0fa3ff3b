"""Euler's method: steps as if the velocity stayed what it is."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    for here, there in pairwise(walk.sigmas):
        latents = latents + (there - here) * walk.velocity(latents, here)
        yield latents


METHOD = Sampler(help="plain steps, what ComfyUI's templates for Wan 2.2 have", path=_path, takes_equal=True)

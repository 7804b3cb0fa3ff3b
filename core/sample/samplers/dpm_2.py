"""DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1): the velocity in the middle of each step of log(sigma)."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    for here, there in pairwise(walk.sigmas):
        velocity = walk.velocity(latents, here)
        if there != 0:
            middle = (here * there).sqrt()
            velocity = walk.velocity(latents + (middle - here) * velocity, middle)
        latents = latents + (there - here) * velocity
        yield latents


METHOD = Sampler(
    help="two forwards a step, the second one in its middle", path=_path, calls=2, spare_steps=1, takes_equal=True
)

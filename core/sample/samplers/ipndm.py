"""The method of Adams and Bashforth, as if all steps were of one length: iPNDM of Zhang and Chen 2022 (arXiv:2204.13902)."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk

_WEIGHTS = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))  # of the velocities, the newest first, over their sum


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    velocities: list[Tensor] = []  # the newest first
    for here, there in pairwise(walk.sigmas):
        velocities = [walk.velocity(latents, here), *velocities[: len(_WEIGHTS) - 1]]
        weights = _WEIGHTS[0 if there == 0 else len(velocities) - 1]
        velocity = sum(weight * known for weight, known in zip(weights, velocities, strict=False)) / sum(weights)
        latents = latents + (there - here) * velocity
        yield latents


METHOD = Sampler(help="looks back up to three steps, for steps of like length", path=_path, takes_equal=True)

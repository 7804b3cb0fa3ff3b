"""The second order multistep method of RES (Zhang et al. 2023, arXiv:2308.02157), without noise.

B samples, C channels, F H W latent frames, height, width.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise

Stepping = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # here, there -> down to which sigma, how much noise back up


def path(latents: Tensor, walk: SigmaWalk, stepping: Stepping) -> Iterator[Tensor]:
    """Latents [B, C, F, H, W] after each step."""
    noise = fresh_noise(latents, walk.seeds)
    before: tuple[Tensor, Tensor] | None = None  # the data of the step before, and how far that went in log(sigma)
    for here, there in pairwise(walk.sigmas):
        down, up = stepping(here, there)
        velocity = walk.velocity(latents, here)
        data = latents - velocity * here
        if before is None or there == 0:
            latents = latents + (down - here) * velocity
        else:
            width = here.log() - down.log()
            back = before[1] / width
            phi_1 = torch.expm1(-width) / -width
            phi_2 = (phi_1 - 1.0) / -width
            latents = torch.exp(-width) * latents + width * ((phi_1 - phi_2 / back) * data + phi_2 / back * before[0])
        if up > 0:
            latents = latents + noise() * up
        before = data, down.log() - here.log()
        yield latents


def _plain(_here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    return there, torch.zeros(())


METHOD = Sampler(help="looks back one step, in another way than dpmpp_2m", path=partial(path, stepping=_plain))

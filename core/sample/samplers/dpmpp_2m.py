"""DPM-Solver++(2M) of Lu et al. 2022 (arXiv:2211.01095, algorithm 2): the data in second order in t = -log(sigma)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Sampler, SigmaWalk


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    sigmas, times = walk.sigmas, walk.sigmas.log().neg()
    before: Tensor | None = None
    for here in range(len(sigmas) - 1):
        time, after = times[here], times[here + 1]
        width = after - time
        data = aim = walk.data(latents, sigmas[here])
        if before is not None and sigmas[here + 1] != 0:
            ratio = (time - times[here - 1]) / width
            aim = (1 + 1 / (2 * ratio)) * data - (1 / (2 * ratio)) * before
        before = data
        latents = torch.exp(-after) / torch.exp(-time) * latents - (-width).expm1() * aim
        yield latents


METHOD = Sampler(help="looks back one step, closer to the true way than euler", path=_path)

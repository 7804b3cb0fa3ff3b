"""The second order multistep method of RES (Zhang et al. 2023, arXiv:2308.02157), without noise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Sampler, SigmaWalk


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    sigmas, times = walk.sigmas, walk.sigmas.log().neg()
    before: Tensor | None = None
    for here in range(len(sigmas) - 1):
        velocity = walk.velocity(latents, sigmas[here])
        data = latents - velocity * sigmas[here]
        if before is None or sigmas[here + 1] == 0:
            latents = latents + (sigmas[here + 1] - sigmas[here]) * velocity
        else:
            width = times[here + 1] - times[here]
            back = (times[here - 1] - times[here]) / width
            phi_1 = torch.expm1(-width) / -width
            phi_2 = (phi_1 - 1.0) / -width
            latents = torch.exp(-width) * latents + width * ((phi_1 - phi_2 / back) * data + phi_2 / back * before)
        before = data
        yield latents


METHOD = Sampler(help="looks back one step, in another way than dpmpp_2m", path=_path)

"""ER-SDE-Solver-3 of Cui et al. 2023 (arXiv:2309.06169), with the noise of its section 5, phi(x) = x (exp(x^0.3) + 10).

x = sigma / (1 - sigma) is exp(-lambda), and the data are a polynomial in it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise
from ._sde import FIRST_SHARE, half_log_snr, sigmas_with_lambda

_POINTS = 200  # of an integral


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = fresh_noise(latents, walk.seeds)
    sigmas = sigmas_with_lambda(walk)
    ratios = half_log_snr(sigmas).neg().exp()
    before: Tensor | None = None  # the data of the step before
    slope_before: Tensor | None = None
    for step in range(len(sigmas) - 1):
        here, there = ratios[step], ratios[step + 1]
        data = walk.data(latents, sigmas[step])
        if there == 0:
            latents = data
        else:
            kept, alpha = _phi(there) / _phi(here), 1 - sigmas[step + 1]
            latents = alpha / (1 - sigmas[step]) * kept * latents + alpha * (1 - kept) * data
            if before is not None:
                gap = (here - there) / _POINTS
                points = there + torch.arange(_POINTS) * gap
                shares = _phi(there) / _phi(points) * gap
                slope = (data - before) / (here - ratios[step - 1])
                latents = latents + alpha * (shares.sum() + there - here) * slope
                if slope_before is not None:
                    bend = 2 * (slope - slope_before) / (here - ratios[step - 2])
                    square = (there - here) ** 2 / 2
                    latents = latents + alpha * (square + ((points - here) * shares).sum()) * bend
                slope_before = slope
            latents = latents + alpha * noise() * (there**2 - (here * kept) ** 2).clamp(min=0).sqrt()
        before = data
        yield latents


def _phi(ratio: Tensor) -> Tensor:
    return ratio * ((ratio**0.3).exp() + 10)


METHOD = Sampler(
    help="new noise at each step, and looks back two steps",
    path=_path,
    first_share=FIRST_SHARE,
)

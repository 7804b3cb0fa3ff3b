"""SDE-DPM-Solver++ of Lu et al. 2022 (arXiv:2211.01095, appendix) in third order, as multistep method with eta 1."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import brownian_noise
from ._sde import FIRST_SHARE, half_log_snr, sigmas_with_lambda


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = brownian_noise(latents, walk.sigmas, walk.seeds)
    before: list[tuple[Tensor, Tensor]] = []  # the data of up to two steps, and their widths; the newest first
    for here, there in pairwise(sigmas_with_lambda(walk)):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            width = half_log_snr(there) - half_log_snr(here)
            alpha, double = there * half_log_snr(there).exp(), 2 * width
            constant = (-double).expm1().neg()  # the integrals of 1, lambda and lambda^2 / 2, with exp(2 lambda)
            linear = 1 - constant / double
            square = 0.5 - linear / double
            latents = there / here * (-width).exp() * latents + alpha * constant * data
            if before:
                (newer, near), (older, far) = before[0], before[-1]
                near, far = near / width, far / width
                slope = (data - newer) / near
                if len(before) == 2:
                    bend = (slope - (newer - older) / far) / (near + far)
                    slope = slope + bend * near
                    latents = latents + alpha * square * bend
                latents = latents + alpha * linear * slope
            latents = latents + noise(here, there) * there * constant.sqrt()
            before = [(data, width), *before[:1]]
        yield latents


METHOD = Sampler(
    help="as dpmpp_2m_sde, but looks back two steps: for many steps",
    path=_path,
    first_share=FIRST_SHARE,
    packages=("torchsde",),
)

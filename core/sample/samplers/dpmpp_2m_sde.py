"""SDE-DPM-Solver++(2M) of Lu et al. 2022 (arXiv:2211.01095, appendix), its midpoint form with eta 1."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import brownian_noise
from ._sde import FIRST_SHARE, half_log_snr, sigmas_with_lambda


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = brownian_noise(latents, walk.sigmas, walk.seeds)
    before: tuple[Tensor, Tensor] | None = None  # the data of the step before, and its width
    for here, there in pairwise(sigmas_with_lambda(walk)):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            width = half_log_snr(there) - half_log_snr(here)
            share = there * half_log_snr(there).exp() * (-2 * width).expm1().neg()  # of the data
            latents = there / here * (-width).exp() * latents + share * data
            if before is not None:
                latents = latents + 0.5 * share * (width / before[1]) * (data - before[0])
            latents = latents + noise(here, there) * there * (-2 * width).expm1().neg().sqrt()
            before = data, width
        yield latents


METHOD = Sampler(
    help="dpmpp_2m with new noise at each step", path=_path, first_share=FIRST_SHARE, packages=("torchsde",)
)

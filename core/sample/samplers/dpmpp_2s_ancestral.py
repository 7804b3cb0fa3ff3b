"""DPM-Solver++(2S) of Lu et al. 2022 (arXiv:2211.01095, algorithm 1), a little too far, and new noise back up to the sigma.

As euler_ancestral, with eta 1: sample_dpmpp_2s_ancestral_RF.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import fresh_noise
from ._sde import ancestral_of_flow, half_log_snr

_BELOW_ONE = 0.9999  # the middle of a first step: a sigma of 1 has no lambda


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = fresh_noise(latents, walk.seeds)
    for here, there in pairwise(walk.sigmas):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            down, scale, amount = ancestral_of_flow(here, there)
            middle = ((half_log_snr(here) + half_log_snr(down)) / 2).neg().sigmoid()
            middle = torch.tensor(_BELOW_ONE) if here == 1 else middle
            data = walk.data(middle / here * latents + (1 - middle / here) * data, middle)
            latents = down / here * latents + (1 - down / here) * data
            latents = scale * latents + noise() * amount
        yield latents


METHOD = Sampler(help="new noise at each step as euler_ancestral, and two forwards for each", path=_path, calls=2)

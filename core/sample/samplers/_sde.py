"""What samplers of a stochastic equation share.

lambda = log((1 - sigma) / sigma) is half the log signal-to-noise ratio.
"""

import torch
from torch import Tensor

from ..shares import sigma_after
from . import SigmaWalk

FIRST_SHARE = 1e-4  # of the way, in place of 0: a sigma of 1 has no lambda (offset_first_sigma_for_snr)


def half_log_snr(sigma: Tensor) -> Tensor:
    """Lambda of a sigma, of any shape."""
    return sigma.logit().neg()


def sigmas_with_lambda(walk: SigmaWalk) -> Tensor:
    """The sigmas of the way [steps + 1], of which the first is below 1."""
    sigmas = walk.sigmas.clone()
    if sigmas[0] >= 1:
        sigmas[0] = sigma_after(FIRST_SHARE, walk.shift)
    return sigmas


def ancestral(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Down to which sigma a step goes, and how much noise leads back up, where the data are not scaled: get_ancestral_step."""
    up = torch.minimum(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
    return (there**2 - up**2) ** 0.5, up


def ancestral_of_flow(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Down to which sigma a step goes, and by what latents and noise are multiplied to come back up to `there`, with eta 1."""
    down = there * (there / here)
    rest, rest_down = 1 - there, 1 - down  # of the data in latents of these sigmas
    return down, rest / rest_down, (there**2 - down**2 * rest**2 / rest_down**2) ** 0.5

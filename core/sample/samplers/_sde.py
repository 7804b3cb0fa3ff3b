"""What the two samplers of a stochastic equation share.

lambda = log((1 - sigma) / sigma) is half the log signal-to-noise ratio.
"""

import torch
from torch import Tensor

from ..shares import sigma_after
from . import SigmaWalk

_FIRST_SHARE = 1e-4  # of the way, in place of 0: a sigma of 1 has no lambda (offset_first_sigma_for_snr)


def half_log_snr(sigma: Tensor) -> Tensor:
    """Lambda of a sigma, of any shape."""
    return sigma.logit().neg()


def sigmas_with_lambda(walk: SigmaWalk) -> Tensor:
    """The sigmas of the way [steps + 1], of which the first is below 1."""
    sigmas = walk.sigmas.clone()
    if sigmas[0] >= 1:
        sigmas[0] = sigma_after(_FIRST_SHARE, walk.shift)
    return sigmas


def ancestral(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Down to which exp(-lambda) a step goes, and how much noise leads back up; both exp(-lambda): get_ancestral_step."""
    up = torch.minimum(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
    return (there**2 - up**2) ** 0.5, up

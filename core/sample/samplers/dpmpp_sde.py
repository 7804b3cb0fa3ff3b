"""SDE-DPM-Solver++ of Lu et al. 2022 (arXiv:2211.01095, appendix), with a forward in the middle of each step and eta 1."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from . import Sampler, SigmaWalk
from ._noise import brownian_noise
from ._sde import FIRST_SHARE, ancestral, half_log_snr, sigmas_with_lambda


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    noise = brownian_noise(latents, walk.sigmas, walk.seeds)
    for here, there in pairwise(sigmas_with_lambda(walk)):
        data = walk.data(latents, here)
        if there == 0:
            latents = data
        else:
            start = half_log_snr(here)
            middle = (start + (half_log_snr(there) - start) / 2).neg().sigmoid()
            data = walk.data(_move(latents, data, here, middle, noise), middle)
            latents = _move(latents, data, here, there, noise)
        yield latents


def _move(
    latents: Tensor, data: Tensor, here: Tensor, there: Tensor, noise: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Latents [B, C, F, H, W] of the sigma `there`, from those of `here` and the data [B, C, F, H, W]."""
    start, end = half_log_snr(here), half_log_snr(there)
    down, up = ancestral(start.neg().exp(), end.neg().exp())
    width = down.log().neg() - start
    alpha = there * end.exp()
    moved = alpha / (here * start.exp()) * (-width).exp() * latents - alpha * (-width).expm1() * data
    return moved + alpha * noise(here, there) * up


METHOD = Sampler(
    help="new noise at each step, and two forwards for each",
    path=_path,
    calls=2,
    first_share=FIRST_SHARE,
    packages=("torchsde",),
)

"""Which noise levels are trained: distributions of sigma, cut to an expert's window in closed form.

sigma lies in [0, 1]; 1 is pure noise. Every distribution (see `timesteps`) is given by its quantile function Q and its
inverse F, so a window [low, high] needs no rejection: sigma = Q(F(low) + u (F(high) - F(low))) with u uniform in [0, 1).
"""

import torch

from ..settings.timesteps import TimestepOptions
from .random import stream
from .timesteps import SAMPLINGS


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """The official time shift: s sigma / (1 + (s - 1) sigma). Its inverse is the shift by 1/s."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_at(u: torch.Tensor, options: TimestepOptions) -> torch.Tensor:
    """Uniform u in [0, 1] to sigma inside the window, float64: the quantile function of the cut distribution."""
    sampling = SAMPLINGS.get(options.sampling)
    low, high = sampling.cumulative(options.sigma_min, options), sampling.cumulative(options.sigma_max, options)
    sigma = sampling.quantile((low + u.double() * (high - low)).clamp(0.0, 1.0), options)
    return sigma.clamp(options.sigma_min, options.sigma_max)


def sample_sigmas(options: TimestepOptions, *, seed: int, first_draw: int, count: int) -> torch.Tensor:
    """Sigmas of the draws first_draw ... first_draw + count - 1 of a run, [count] float32.

    With `strata` K, draws nK ... nK + K - 1 fall one into each of K equally likely cells of the window, in an order
    shuffled anew for each n: the same distribution, with less variance from step to step.
    """
    draws = []
    for index in range(first_draw, first_draw + count):
        u = torch.rand((), generator=stream(seed, "sigma", index), dtype=torch.float64)
        if options.strata > 1:
            group, slot = divmod(index, options.strata)
            order = torch.randperm(options.strata, generator=stream(seed, "strata", group))
            u = (order[slot] + u) / options.strata
        draws.append(u)
    return sigma_at(torch.stack(draws), options).float()

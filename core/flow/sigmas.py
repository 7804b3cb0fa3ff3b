"""Which noise levels are trained: distributions of sigma, cut to an expert's window in closed form.

sigma lies in [0, 1]; 1 is pure noise. Every distribution (see `timesteps`) is given by its quantile function Q and its
inverse F, so a window [low, high] needs no rejection: sigma = Q(F(low) + u (F(high) - F(low))) with u uniform in [0, 1).
"""

from collections.abc import Sequence

import torch

from ..settings.timesteps import Bias, TimestepOptions
from .random import stream
from .timesteps import SAMPLINGS, TimestepSampling

NUM_SIGMAS = 8  # at which a held-out sample is measured


def sigma_at(u: torch.Tensor, options: TimestepOptions, shape: Sequence[int] | None = None) -> torch.Tensor:
    """Uniform u in [0, 1] to sigma inside the window, float64: the quantile function of what is drawn.

    `shape`: of the latents, [..., F, H, W]; without it a distribution that depends on the size has the option shift.
    """
    sampling, options = _at_size(options, shape)
    u = _biased(u.double(), options.bias)
    if options.window == "squeezed":
        sigma = options.sigma_min + (options.sigma_max - options.sigma_min) * sampling.quantile(u, options)
    else:
        low, high = sampling.cumulative(options.sigma_min, options), sampling.cumulative(options.sigma_max, options)
        sigma = sampling.quantile((low + u * (high - low)).clamp(0.0, 1.0), options)
    return sigma.clamp(options.sigma_min, options.sigma_max)


def share_below(sigma: float, options: TimestepOptions, shape: Sequence[int] | None = None) -> float:
    """The probability that a level below `sigma` is drawn: the inverse of `sigma_at`."""
    least, most = options.sigma_min, options.sigma_max
    if not least < sigma < most:
        return float(sigma >= most)
    sampling, options = _at_size(options, shape)
    if options.window == "squeezed":
        share = sampling.cumulative((sigma - least) / (most - least), options)
    else:
        low, high = sampling.cumulative(least, options), sampling.cumulative(most, options)
        share = (sampling.cumulative(sigma, options) - low) / (high - low)
    return _unbiased(share, options.bias)


def sample_sigmas(
    options: TimestepOptions, *, seed: int, first_draw: int, count: int, shape: Sequence[int] | None = None
) -> torch.Tensor:
    """Sigmas of the draws first_draw ... first_draw + count - 1 of a run, [count] float32; `shape` as in `sigma_at`.

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
    return sigma_at(torch.stack(draws), options, shape).float()


def _at_size(options: TimestepOptions, shape: Sequence[int] | None) -> tuple[TimestepSampling, TimestepOptions]:
    sampling = SAMPLINGS.get(options.sampling)
    if shape is None or sampling.at_size is None:
        return sampling, options
    return sampling, sampling.at_size(options, shape)


def _biased(u: torch.Tensor, bias: Bias) -> torch.Tensor:
    """AI-Toolkit's content_or_style: the cube of a uniform draw, counted from the favoured end of the window."""
    if bias == "favor_high_noise":
        return 1 - (1 - u) ** 3
    return u**3 if bias == "favor_low_noise" else u


def _unbiased(share: float, bias: Bias) -> float:
    share = min(max(share, 0.0), 1.0)
    if bias == "favor_high_noise":
        return 1 - (1 - share) ** (1 / 3)
    return share ** (1 / 3) if bias == "favor_low_noise" else share

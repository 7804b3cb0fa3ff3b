"""tAB-DEIS of Zhang and Chen 2022 (arXiv:2204.13902, section 3): the velocity as a polynomial in t through the last three.

t is the time of a variance preserving diffusion, log(1 + sigma^2) = growth t^2 / 2 + base t, as the host has it: from the sigma
0.002 at t = 0.001 to 80 at t = 1. Integrals are means over as many points as there.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import Sampler, SigmaWalk

_MAX_ORDER = 3
_START = 0.001
_LOWEST, _HIGHEST = math.log1p(0.002**2), math.log1p(80.0**2)
_GROWTH = 2 * (_HIGHEST - _LOWEST / _START) / (1 - _START)
_BASE = _HIGHEST - _GROWTH / 2
_POINTS = 10_000


def _path(latents: Tensor, walk: SigmaWalk) -> Iterator[Tensor]:
    sigmas = walk.sigmas
    times = (((_BASE**2 + 2 * _GROWTH * sigmas.double().square().log1p()).sqrt() - _BASE) / _GROWTH).tolist()
    velocities: list[Tensor] = []  # the newest last, as times have it
    for step in range(len(sigmas) - 1):
        velocities = [*velocities[1 - _MAX_ORDER :], walk.velocity(latents, sigmas[step])]
        if len(velocities) == 1 or sigmas[step + 1] == 0:
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocities[-1]
        else:
            weights = _weights(times[step + 1 - len(velocities) : step + 1], times[step + 1])
            for weight, velocity in zip(weights, velocities, strict=True):
                latents = latents + weight * velocity
        yield latents


def _weights(known: Sequence[float], there: float) -> list[float]:
    """Of the velocities at the times `known`: their Lagrange polynomials, integrated over sigma from the last of them on."""
    points = torch.linspace(known[-1], there, _POINTS, dtype=torch.float64)
    logs = (_GROWTH / 2 * points + _BASE) * points
    slopes = (_GROWTH * points + _BASE) * logs.exp() / (2 * logs.expm1().sqrt())  # of sigma by t
    weights: list[float] = []
    for time in known:
        factors = [(points - other) / (time - other) for other in known if other != time]
        weights.append(float((slopes * math.prod(factors)).mean()) * (there - known[-1]))
    return weights


METHOD = Sampler(help="looks back up to two steps, in time of a diffusion", path=_path)

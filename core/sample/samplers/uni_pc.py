"""UniPC, the multistep predictor-corrector of Zhao et al. 2023 (arXiv:2302.04867), in the variant of ComfyUI's "uni_pc".

A path of the flow, dx/dsigma = (x - x0) / sigma, is one of a diffusion with alpha = 1: its log signal-to-noise ratio is
lambda = -log(sigma). The data x0 are what is predicted, B(h) is B_1(h) = h, and the order is 3, lower at both ends.

In double precision this is the host's result to 14 digits (test_host). The host computes the weights in float32, where
they lose digits as h falls: for miniature models by 1e-5 of the largest value in 20 steps of shift 5, 1e-3 in 20 and
1e-2 in 50 steps of shift 12. B samples, C channels, F H W latent frames, height, width.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from . import Sampler, SigmaWalk

MAX_ORDER = 3
LAST_SIGMA = 0.001  # where the host ends instead of at 0, which has no logarithm


class UniPC:
    """The steps of one model along `sigmas` [steps + 1]. Its history is its own.

    A run of one step is Euler's; the host then makes none, and returns what it was given, scaled. The sigmas must fall, also
    to LAST_SIGMA at the end. `b` is B(h) of -h.
    """

    def __init__(self, sigmas: Sequence[float], b: Callable[[float], float] = float) -> None:
        self._scale = 1.0
        self._b = b
        self._sigmas = list(sigmas)
        if self._sigmas[-1] == 0.0:
            self._sigmas[-1] = LAST_SIGMA
            self._scale = 1.0 - LAST_SIGMA  # of the data in latents of that sigma; the host divides by it
        self._made = 0  # steps
        self._start: Tensor | None = None  # corrected latents at the sigma before
        self._data: list[Tensor] = []  # predictions of the data, the newest last

    def step(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """Latents [B, C, F, H, W] at the next sigma, from those at this one and the model's velocity there."""
        here = self._made
        data = latents - self._sigmas[here] * velocity
        if self._start is not None:
            latents = self._move(self._start, here, data)
        self._start = latents
        self._data = [*self._data[1 - MAX_ORDER :], data]
        self._made += 1
        moved = self._move(latents, self._made)
        return moved / self._scale if self._made == len(self._sigmas) - 1 else moved

    def _move(self, start: Tensor, target: int, found: Tensor | None = None) -> Tensor:
        """From `start`, at the sigma before `target`, to it: UniP, or UniC where the data `found` there are known.

        The data are a polynomial in lambda through the predictions, and the path along it is known (paper, section 3).
        """
        num_steps = len(self._sigmas) - 1
        order = min(MAX_ORDER, target, num_steps + 1 - target)
        origin = self._sigmas[target - 1]
        ratio = self._sigmas[target] / origin
        newest = self._data[-1]
        others = self._data[-order:-1]
        places = [math.log(sigma / origin) / math.log(ratio) for sigma in self._sigmas[target - order : target - 1]]
        if found is not None:
            others, places = [*others, found], [*places, 1.0]
        moved = ratio * start + (1.0 - ratio) * newest
        for weight, data in zip(_weights(math.log(ratio), places, self._b), others, strict=True):
            moved = moved - weight * (data - newest)
        return moved


def _weights(z: float, places: Sequence[float], b: Callable[[float], float]) -> list[float]:
    """Weights of the differences to the newest prediction; z = -h, places r_k in units of h (paper, eq. 5 to 8).

    Sums of weight_k r_k^i are i! z phi_{i+1}(z), for i from 1 to the number of places. One place alone has the weight
    B(h) / 2 instead, which needs no equation and has the same order.
    """
    if len(places) <= 1:
        return [b(z) / 2 / place for place in places]
    sums, phi = [], math.expm1(z) / z  # phi_1
    for i in range(1, len(places) + 1):
        phi_z = phi - 1 / math.factorial(i)  # z phi_{i+1}
        sums.append(math.factorial(i) * phi_z)
        phi = phi_z / z
    powers = torch.tensor([[place**i for place in places] for i in range(1, len(places) + 1)], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(sums, dtype=torch.float64)).tolist()


def path(latents: Tensor, walk: SigmaWalk, b: Callable[[float], float] = float) -> Iterator[Tensor]:
    """Latents [B, C, F, H, W] after each step."""
    solver = UniPC(walk.sigmas.tolist(), b)
    for sigma in walk.sigmas[:-1]:
        latents = solver.step(latents, walk.velocity(latents, sigma))
        yield latents


METHOD = Sampler(
    help="looks back up to three steps, with a correction of each", path=path, spare_steps=1, last_sigma=LAST_SIGMA
)

"""DPM-Solver++(2M) of Lu et al. 2022 (arXiv:2211.01095, algorithm 2), in the form of ComfyUI's "dpmpp_2m".

The step of the data prediction of second order in t = -log(sigma), as k-diffusion has it (sampling.py, sample_dpmpp_2m).
B samples, C channels, F H W latent frames, height, width.
"""

import torch
from torch import Tensor


class DpmPlusPlus2M:
    """The steps of one model along `sigmas` [steps + 1] float32. Its history is its own."""

    def __init__(self, sigmas: Tensor) -> None:
        self._sigmas, self._times = sigmas, sigmas.log().neg()
        self._made = 0
        self._before: Tensor | None = None  # the data as the step before predicted them

    def step(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """Latents [B, C, F, H, W] at the next sigma, from those at this one and the model's velocity there."""
        here = self._made
        data = latents - velocity * self._sigmas[here]
        time, after = self._times[here], self._times[here + 1]
        width = after - time
        aim = data
        if self._before is not None and self._sigmas[here + 1] != 0:
            ratio = (time - self._times[here - 1]) / width
            aim = (1 + 1 / (2 * ratio)) * data - (1 / (2 * ratio)) * self._before
        self._before = data
        self._made += 1
        return torch.exp(-after) / torch.exp(-time) * latents - (-width).expm1() * aim

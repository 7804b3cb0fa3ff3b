"""The time shift, and how much of it a size asks for. F latent frames, H W latent size."""

import math
from collections.abc import Sequence

import torch

from ..facts import num_tokens

# Tokens of the smallest and of the largest picture, and the logarithms of their shifts.
FLUX = (256, 0.5, 4096, 1.15)  # Flux's own sampler
QWEN = (256, 0.5, 8192, 0.9)  # Qwen-Image's


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """The official time shift: s sigma / (1 + (s - 1) sigma). Its inverse is the shift by 1/s."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_of_tokens(tokens: int, line: tuple[int, float, int, float] = FLUX) -> float:
    """exp(mu), where mu is a straight line over the number of tokens, which goes on beyond its ends."""
    x1, y1, x2, y2 = line
    return math.exp(y1 + (y2 - y1) / (x2 - x1) * (tokens - x1))


def shift_of_picture(shape: Sequence[int], line: tuple[int, float, int, float] = FLUX) -> float:
    """The shift for one frame of latents [..., F, H, W], however many there are: musubi-tuner and diffusion-pipe."""
    return shift_of_tokens(num_tokens((1, *shape[-2:])), line)

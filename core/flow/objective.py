"""Flow matching (Lipman et al., 2023, arXiv:2210.02747) as Wan uses it.

B batch, C channels, F latent frames, H W latent size. x = (1 - sigma) z + sigma n; target n - z; t = 1000 sigma.
"""

import torch

from .random import stream

NUM_TIMESTEPS = 1000


def sample_noise(shape: tuple[int, ...], *, seed: int, draw: int) -> torch.Tensor:
    """Standard normal noise of one draw of a run, float32 on the CPU: a function of (seed, draw) alone."""
    return torch.randn(shape, generator=stream(seed, "noise", draw))


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """x = (1 - sigma) z + sigma n, [B, C, F, H, W]; sigmas [B]."""
    sigmas = sigmas.view(-1, 1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """n - z: the velocity from data to noise, which Wan predicts."""
    return noise - latents


def flow_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample in float32, [B]."""
    return (pred.float() - target).square().flatten(1).mean(1)

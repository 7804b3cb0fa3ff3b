"""Flow matching (Lipman et al., 2023, arXiv:2210.02747) as Wan uses it.

B batch, C channels, F latent frames, H W latent size. x = (1 - sigma) z + sigma n; target n - z; t = 1000 sigma.
"""

import torch

from ..settings.loss import LossOptions
from .losses import LOSSES
from .random import stream
from .weightings import WEIGHTINGS

MSE = LossOptions()


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


def give_first_frame(
    noisy_latents: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """TI2V's way of giving an image: the first latent frame clean, at timestep 0 (Wan2.2, wan/textimage2video.py).

    noisy_latents and latents [B, C, F, H, W], timesteps [B] -> [B, C, F, H, W] and timesteps [B, F].
    """
    given = torch.cat([latents[:, :, :1], noisy_latents[:, :, 1:]], dim=2)
    by_frame = timesteps.unsqueeze(1).repeat(1, latents.shape[2])
    by_frame[:, 0] = 0
    return given, by_frame


def flow_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    options: LossOptions = MSE,
    sigmas: torch.Tensor | None = None,
    given_frames: int = 0,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean error of each sample in float32, [B]; over the latent frames behind `given_frames` alone.

    `sigmas` [B]: for a loss that follows the noise level. `masks`, of a shape that broadcasts to [B, 1, F, H, W], multiply
    the error before the mean, which stays one over all latents.
    """
    loss = LOSSES.get(options.kind)
    if sigmas is not None and loss.error_at is not None:
        error = loss.error_at(pred, target, sigmas, options)
    else:
        error = loss.error(pred, target, options)
    if masks is not None:
        error = error * masks
    return error[:, :, given_frames:].flatten(1).mean(1)


def weigh(losses: torch.Tensor, sigmas: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """Losses [B] times what their noise levels [B] count."""
    return losses * WEIGHTINGS.get(options.weighting).weight(sigmas, options)


def place_weights(
    latents: torch.Tensor, options: LossOptions, masks: torch.Tensor | None = None
) -> torch.Tensor | None:
    """What the error at each place of latents [B, C, F, H, W] counts, times `masks` [B, 1, F, H, W]; None: all the same."""
    places = WEIGHTINGS.get(options.weighting).places
    if places is None:
        return masks
    found = places(latents, options)
    return found if masks is None else found * masks


def guided_target(pred: torch.Tensor, target: torch.Tensor, scale: float) -> torch.Tensor:
    """AI-Toolkit's differential guidance (SDTrainer.py, 27a03a9): pred + scale (target - pred), without a gradient.

    The error is `scale` times what it was. Of the squared error the gradient is therefore `scale` times what it was, and
    the loss `scale` squared times.
    """
    if scale == 1.0:
        return target
    pred = pred.detach().float()
    return pred + scale * (target - pred)

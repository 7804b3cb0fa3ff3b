"""Latent temporal discrepancy (Wu et al., 2026, arXiv:2601.20504): places of a video that change count more.

The weight is 1 + strength log(1 + d), d how far the latent at a place is from the same place in the frames beside it. So
still places are trained as they always are, and moving ones more, as the paper asks for.
"""

import torch
from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting


def beside(gaps: Tensor) -> Tensor:
    """Of each frame the mean of the gap before and behind it; gaps [B, F - 1, ...] -> [B, F, ...]. The ends have one."""
    first, last = gaps[:, :1], gaps[:, -1:]
    return torch.cat([first, (gaps[:, :-1] + gaps[:, 1:]) / 2, last], dim=1)


def _places(latents: Tensor, options: LossOptions) -> Tensor:
    if latents.shape[2] < 2:  # an image: nothing moves
        return torch.ones_like(latents[:, :1], dtype=torch.float32)
    gaps = latents.float().diff(dim=2).square().mean(1).sqrt()  # [B, F - 1, H, W]
    return 1 + options.motion_strength * torch.log1p(beside(gaps)).unsqueeze(1)


METHOD = Weighting(
    help="places that move count more, by motion_strength (latent temporal discrepancy)",
    places=_places,
    uses=("motion_strength",),
)

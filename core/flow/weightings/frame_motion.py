"""Latent temporal discrepancy by whole frames, with a mean of 1 in each clip.

As AkaneTendo25's musubi-tuner has it for LTX-2 (ltx2_latent_temporal.py, e0e570f: mode log, normalize mean, alpha the
strength): still frames count less then, and the loss of a clip keeps its size.
"""

import torch
from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting
from .motion import beside

_LEAST, _MOST = 0.5, 2.0
_TINY = 1e-6


def _places(latents: Tensor, options: LossOptions) -> Tensor:
    if latents.shape[2] < 2:
        return torch.ones_like(latents[:, :1, :, :1, :1], dtype=torch.float32)
    gaps = latents.float().diff(dim=2).square().mean((1, 3, 4)).clamp(min=_TINY).sqrt()  # [B, F - 1]
    weights = 1 + options.motion_strength * _mean_one(torch.log1p(beside(gaps)))
    return _mean_one(_mean_one(weights).clamp(_LEAST, _MOST)).view(len(latents), 1, -1, 1, 1)


def _mean_one(scores: Tensor) -> Tensor:
    return scores / scores.mean(1, keepdim=True).clamp(min=_TINY)


METHOD = Weighting(
    help="frames that move count more and still ones less, by motion_strength",
    places=_places,
    uses=("motion_strength",),
)

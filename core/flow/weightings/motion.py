"""Places of a video that change count more, after latent temporal discrepancy (Wu et al., 2026, arXiv:2601.20504).

The paper's rule: the more the latent at a place differs from frame to frame, the more its error counts, by a logarithm, and
still places are trained as always. The form is ours: 1 + strength log(1 + d), where d is the root mean square over channels
of the difference to the frame before and to the one behind, the mean of both.
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

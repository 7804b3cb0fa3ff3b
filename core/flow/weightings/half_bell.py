"""AI-Toolkit's linear_timesteps2: the bell above sigma 1/2, its top below."""

import torch
from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting
from ._bell import TOP, bell


def _weight(sigmas: Tensor, _options: LossOptions) -> Tensor:
    return torch.where(sigmas <= 0.5, TOP, bell(sigmas))


METHOD = Weighting(
    help="1.58 below the middle, and falling to nothing at pure noise: AI-Toolkit's linear_timesteps2", weight=_weight
)

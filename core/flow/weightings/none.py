"""No weighting."""

import torch
from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting


def _weight(sigmas: Tensor, _options: LossOptions) -> Tensor:
    return torch.ones_like(sigmas)


METHOD = Weighting(help="every noise level counts alike", weight=_weight)

"""CosMap as a weight: 2 / (pi (1 - 2 sigma + 2 sigma^2)) (Esser et al., 2024, arXiv:2403.03206; musubi-tuner, 30c658c)."""

import math

from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting


def _weight(sigmas: Tensor, _options: LossOptions) -> Tensor:
    return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas.square()))


METHOD = Weighting(help="the middle noise levels count up to twice as much as the ends", weight=_weight)

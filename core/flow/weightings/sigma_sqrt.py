"""1 / sigma^2: musubi-tuner's weighting_scheme sigma_sqrt (training/timesteps.py, 30c658c), after Stable Diffusion 3."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting

LEAST = 1e-3  # the lowest level that it has; below, one sample would outweigh all others


def _weight(sigmas: Tensor, _options: LossOptions) -> Tensor:
    return sigmas.clamp(min=LEAST) ** -2


METHOD = Weighting(help="1 / sigma^2, so that nearly clean levels count by far the most", weight=_weight)

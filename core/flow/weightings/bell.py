"""AI-Toolkit's linear_timesteps: a bell, 1.58 in the middle and 0 at both ends."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Weighting
from ._bell import bell


def _weight(sigmas: Tensor, _options: LossOptions) -> Tensor:
    return bell(sigmas)


METHOD = Weighting(
    help="a bell, 1.58 in the middle and nothing at both ends: AI-Toolkit's linear_timesteps", weight=_weight
)

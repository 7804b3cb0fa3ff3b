"""Mean absolute error: AI-Toolkit's loss_type mae (SDTrainer.py, 27a03a9)."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Loss


def _error(pred: Tensor, target: Tensor, _options: LossOptions) -> Tensor:
    return (pred.float() - target).abs()


METHOD = Loss(help="the size of the error, so that outliers count less", error=_error)

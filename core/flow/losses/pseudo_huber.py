"""Pseudo-Huber, 2 c (sqrt(d^2 + c^2) - c): SimpleTuner's loss_type huber. Near 0 it is the squared error."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Loss
from ._pseudo import distance, width


def _error(pred: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    c = options.huber_c
    return 2 * c * distance(pred, target, c)


def _error_at(pred: Tensor, target: Tensor, sigmas: Tensor, options: LossOptions) -> Tensor:
    c = width(sigmas, options)
    return 2 * c * distance(pred, target, c)


METHOD = Loss(
    help="the squared error near 0, a straight line beyond about huber_c: SimpleTuner's huber",
    error=_error,
    error_at=_error_at,
    uses=("huber_c", "huber_schedule"),
)

"""2 (sqrt(d^2 + c^2) - c): SimpleTuner's loss_type smooth_l1, and twice AI-Toolkit's pseudo_huber, whose c is 0.01."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Loss
from ._pseudo import distance, width


def _error(pred: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    c = options.huber_c
    return 2 * distance(pred, target, c)


def _error_at(pred: Tensor, target: Tensor, sigmas: Tensor, options: LossOptions) -> Tensor:
    c = width(sigmas, options)
    return 2 * distance(pred, target, c)


METHOD = Loss(
    help="twice the error, rounded within about huber_c: SimpleTuner's smooth_l1; AI-Toolkit's pseudo_huber with huber_c 0.01",
    error=_error,
    error_at=_error_at,
    uses=("huber_c", "huber_schedule"),
)

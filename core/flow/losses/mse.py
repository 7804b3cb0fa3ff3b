"""Mean squared error, as Wan was trained (Lipman et al., 2023, arXiv:2210.02747, equation 9)."""

from torch import Tensor

from ...settings.loss import LossOptions
from . import Loss


def _error(pred: Tensor, target: Tensor, _options: LossOptions) -> Tensor:
    return (pred.float() - target).square()


METHOD = Loss(help="the squared error, as Wan itself was trained", error=_error)

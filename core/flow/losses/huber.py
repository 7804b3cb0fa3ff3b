"""Huber's loss (1964), as diffusion-pipe has it: d^2 / 2 up to a distance of delta, and delta (d - delta / 2) beyond.

The latents are normalised to a standard deviation of 1, and so is the noise: a distance of 1 is a large one, which few
numbers of a trained model have.
"""

from torch import Tensor
from torch.nn import functional as F

from ...settings.loss import LossOptions
from . import Loss


def _error(pred: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    return F.huber_loss(pred.float(), target, reduction="none", delta=options.huber_delta)


METHOD = Loss(
    help="half the squared error up to huber_delta and a straight line beyond, so that outliers count less",
    error=_error,
    uses=("huber_delta",),
)

"""Smooth L1 (Girshick, 2015), as diffusion-pipe has it: d^2 / (2 beta) up to a distance of beta, and d - beta / 2 beyond.

It is Huber's loss divided by its delta, so that far errors count the same whatever the delta.
"""

from torch import Tensor
from torch.nn import functional as F

from ...settings.loss import LossOptions
from . import Loss


def _error(pred: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    return F.smooth_l1_loss(pred.float(), target, reduction="none", beta=options.huber_delta)


METHOD = Loss(
    help="huber divided by huber_delta: diffusion-pipe's smooth_l1_beta",
    error=_error,
    uses=("huber_delta",),
)

"""The smooth relatives of Huber's loss, as SimpleTuner has them (models/common.py, bc8e6ab)."""

import math

import torch
from torch import Tensor

from ...settings.loss import LossOptions


def distance(pred: Tensor, target: Tensor, c: Tensor | float) -> Tensor:
    """sqrt(d^2 + c^2) - c of pred and target [B, C, F, H, W], float32; c a number or [B, 1, 1, 1, 1].

    Near 0 the root and c cancel in float32, so it is computed as d^2 / (sqrt(d^2 + c^2) + c).
    """
    square = (pred.float() - target).square()
    return square / (torch.sqrt(square + c * c) + c)


def width(sigmas: Tensor, options: LossOptions) -> Tensor:
    """c at noise levels [B], as [B, 1, 1, 1, 1] float32."""
    c = torch.full_like(sigmas, options.huber_c, dtype=torch.float32)
    if options.huber_schedule == "exponential":
        c = torch.exp(math.log(options.huber_c) * sigmas.float())
    elif options.huber_schedule == "snr":
        ratio = torch.sqrt((1 - sigmas.float()) / (sigmas.float() + 1e-4))  # of signal to noise
        c = (1 - options.huber_c) / (1 + ratio) ** 2 + options.huber_c
    return c.view(-1, 1, 1, 1, 1)

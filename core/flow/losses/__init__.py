"""What is minimised: each file is one distance between the velocity that the model predicts and the true one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...methods import Methods
from ...settings.loss import LossOptions


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One distance."""

    help: str  # a clause for tooltips and documents
    error: Callable[[Tensor, Tensor, LossOptions], Tensor]  # pred, target [B, C, F, H, W] -> of each number, float32
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not
    # In its place where the distance follows the noise level: pred, target, sigmas [B], options.
    error_at: Callable[[Tensor, Tensor, Tensor, LossOptions], Tensor] | None = None


LOSSES = Methods(Loss, "loss", "flow.losses")

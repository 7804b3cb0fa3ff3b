"""How much each noise level, or each place in a video, counts: each file is one weight of the loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...methods import Methods
from ...settings.loss import LossOptions


def alike(sigmas: Tensor, _options: LossOptions) -> Tensor:
    """1 for each of sigmas [B]."""
    return torch.ones_like(sigmas)


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One weight: of a sample by its noise level, of places in it by its latents, or of both."""

    help: str  # a clause for tooltips and documents
    weight: Callable[[Tensor, LossOptions], Tensor] = alike  # sigmas [B] -> weights [B], float32
    # latents [B, C, F, H, W] -> what the error at each place counts, float32, of a shape that broadcasts to [B, 1, F, H, W]
    places: Callable[[Tensor, LossOptions], Tensor] | None = None
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not


WEIGHTINGS = Methods(Weighting, "weighting", "flow.weightings")

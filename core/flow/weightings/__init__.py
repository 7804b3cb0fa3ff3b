"""How much each noise level counts: each file is one weight of a sample's loss, by its sigma."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...methods import Methods
from ...settings.loss import LossOptions


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One weight."""

    help: str  # a clause for tooltips and documents
    weight: Callable[[Tensor, LossOptions], Tensor]  # sigmas [B] -> weights [B], float32
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not


WEIGHTINGS = Methods(Weighting, "weighting", "flow.weightings")

"""Which noise levels are trained: each file is one distribution of sigma in [0, 1], where 1 is pure noise.

A distribution is given by its quantile function Q and its inverse F, so that a window needs no rejection; see `sigmas`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...methods import Methods
from ...settings.timesteps import TimestepOptions


@dataclass(frozen=True, kw_only=True)
class TimestepSampling:
    """One distribution of sigma, before an expert's window cuts it."""

    help: str  # a clause for tooltips and documents
    quantile: Callable[[Tensor, TimestepOptions], Tensor]  # Q: u in [0, 1], any shape, float64 -> sigma
    cumulative: Callable[[float, TimestepOptions], float]  # F, its inverse: the probability of a level below a sigma
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not
    # Of one that depends on the size of a sample: its options for latents of the shape [..., F, H, W].
    at_size: Callable[[TimestepOptions, Sequence[int]], TimestepOptions] | None = None


SAMPLINGS = Methods(TimestepSampling, "timestep sampling", "flow.timesteps")

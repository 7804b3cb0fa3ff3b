"""A distribution as a table, for those whose quantile function has no closed form.

Its cumulative distribution is exact at the knots and a straight line between them, so that Q and F are inverses of each
other, and a window is cut exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = 4096  # knots even in sigma, and as many even in its logit, which are dense at both ends
_LOGIT = 16.0


@dataclass(frozen=True)
class Table:
    """Knots that rise strictly, from (0, 0) to (1, 1); both [K] float64."""

    sigmas: Tensor
    shares: Tensor  # the probability of a level below each

    @classmethod
    def of(cls, cumulative: Callable[[Tensor], Tensor]) -> "Table":
        """`cumulative` gives F of sigmas in (0, 1), [K] float64 -> [K]."""
        even = torch.linspace(0, 1, _HALF + 1, dtype=torch.float64)[1:-1]
        logits = torch.linspace(-_LOGIT, _LOGIT, _HALF, dtype=torch.float64)
        sigmas = torch.cat([even, torch.sigmoid(logits)]).unique()
        shares = cumulative(sigmas)
        # Where F does not rise in float64 there is nothing to draw: of such knots the last is kept before the bulk.
        kept = (shares > 0) & (shares < 1) & torch.cat([shares.diff() > 0, torch.tensor([True])])
        ends = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        return cls(torch.cat([ends[0], sigmas[kept], ends[1]]), torch.cat([ends[0], shares[kept], ends[1]]))

    def quantile(self, u: Tensor) -> Tensor:
        """Q of u in [0, 1], any shape, float64."""
        return _interpolate(u, self.shares, self.sigmas)

    def cumulative(self, sigma: float) -> float:
        """F of one sigma."""
        return float(_interpolate(torch.tensor(sigma, dtype=torch.float64), self.sigmas, self.shares))


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    part = (x - knots[left]) / (knots[right] - knots[left])
    return torch.lerp(values[left], values[right], part)

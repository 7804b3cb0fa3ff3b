"""A summand of what is minimised. B batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One summand of what is minimised."""

    name: str  # by which the event log has it
    losses: Tensor  # [B] float32, of each sample
    weight: float | Tensor = 1.0  # one number
    there: Tensor | None = None  # [B]: 1, and 0 for a sample that has no part in it; None: all have


Group = Sequence[Term]  # terms of the same forwards, which one backward serves

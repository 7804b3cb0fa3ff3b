"""What is minimised."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The distance between the velocity that the model predicts and the true one, and the weight of each noise level."""

    kind: str = "mse"  # a file in core/flow/losses
    weighting: str = "none"  # a file in core/flow/weightings

"""Which noise levels are trained."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

TimestepSampling = Literal["uniform", "sigmoid", "shift"]


@dataclass(frozen=True, kw_only=True)
class TimestepOptions:
    """The distribution of sigma."""

    sampling: TimestepSampling = "uniform"
    shift: float = 3.0  # "shift" only: sigma -> shift sigma / (1 + (shift - 1) sigma)
    sigmoid_scale: float = 1.0  # "sigmoid" and "shift": standard deviation of the logit
    sigma_min: float = 0.0  # the expert's window
    sigma_max: float = 1.0
    strata: int = 1  # draws that together cover the window evenly; 1: independent draws

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma_min < self.sigma_max <= 1.0:
            raise ConfigError(
                f"the window of sigmas is [{self.sigma_min}, {self.sigma_max}]; it must lie in [0, 1], low before high."
            )
        for name in ("shift", "sigmoid_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.strata < 1:
            raise ConfigError(f"strata must be at least 1, got {self.strata}.")

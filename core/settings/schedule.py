"""How the learning rate moves over the run."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

ScheduleKind = Literal["constant", "cosine", "linear", "polynomial"]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How the learning rate moves over the run."""

    kind: ScheduleKind = "constant"
    warmup_steps: int = 0
    floor: float = 0.0  # lowest rate, as a fraction of the learning rate; every decaying kind honours it
    power: float = 1.0  # "polynomial" only

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be 0 or more, got {self.warmup_steps}.")
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"lr_floor is a fraction of the learning rate between 0 and 1, got {self.floor}.")
        if not self.power > 0:
            raise ConfigError(f"lr_power must be above 0, got {self.power}.")

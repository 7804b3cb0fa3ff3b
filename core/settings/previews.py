"""Videos made while the LoRA learns."""

import math
from dataclasses import dataclass

from ..errors import ConfigError
from ..facts import NUM_TIMESTEPS


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Videos made while the LoRA learns, with what it is then."""

    every: int = 0  # steps between two; 0: none
    steps: int = 16  # of the sampler, over the whole way from noise
    cfg: float = 5.0  # guidance away from the empty caption; 1: none, and half the time
    shift: float = 5.0  # time shift of the sampler

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"preview_every must be 0 (no previews) or a number of steps, got {self.every}.")
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise ConfigError(f"preview_steps must lie between 1 and {NUM_TIMESTEPS}, got {self.steps}.")
        if not 0.0 <= self.cfg < math.inf:
            raise ConfigError(f"preview_cfg must be 0 or more (1 for no guidance), got {self.cfg}.")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift of previews must be above 0 (5 for most models), got {self.shift}.")

"""The optimizer and its constants."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

OptimizerName = Literal["adamw", "adamw8bit"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimizer and its constants."""

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0: no clipping

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate <= 1.0:
            raise ConfigError(f"learning_rate must lie above 0 and not above 1, got {self.learning_rate}.")
        if self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ConfigError("weight_decay and max_grad_norm must be 0 or more.")

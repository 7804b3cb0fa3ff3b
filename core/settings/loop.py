"""Length and rhythm of a run."""

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Length and rhythm of the run. A step is one optimizer update."""

    steps: int = 2000
    batch_size: int = 1
    gradient_accumulation: int = 1
    seed: int = 42
    caption_dropout: float = 0.0
    checkpoint_every: int = 250
    keep_last: int = 3
    validate_every: int = 100
    token_budget: int = 0  # most tokens of a batch, so that batch_size may suit small images; 0: no limit

    def __post_init__(self) -> None:
        if self.token_budget < 0:
            raise ConfigError(f"token_budget must be 0 (no limit) or more, got {self.token_budget}.")
        for name in ("steps", "batch_size", "gradient_accumulation", "checkpoint_every", "keep_last", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0.0 <= self.caption_dropout <= 1.0:
            raise ConfigError(f"caption_dropout is a probability between 0 and 1, got {self.caption_dropout}.")

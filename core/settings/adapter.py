"""Size and place of the adapter."""

import math
from dataclasses import dataclass

from ..errors import ConfigError

PARTS = ("self_attn", "cross_attn", "ffn")  # parts of a block whose linear layers can have an adapter


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Size and place of the LoRA. The change of a weight is (alpha / rank) * up @ down."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("self_attn", "cross_attn", "ffn")
    dropout: float = 0.0  # share of the adapter's inputs set to zero while training

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank}.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be a number above 0, got {self.alpha}; the usual choice is the rank.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if not self.targets:
            raise ConfigError(f"targets is empty, so nothing would be trained: choose from {', '.join(PARTS)}.")
        for target in self.targets:
            if target not in PARTS:
                raise ConfigError(f"targets has the unknown entry '{target}': choose from {', '.join(PARTS)}.")
            if self.targets.count(target) > 1:
                raise ConfigError(f"targets names '{target}' twice.")

"""What travels on the pack's own wires: small frozen handles, never weights (the host keeps node outputs alive)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.settings.job import Stage
from ..core.wan.checkpoint import CheckpointInfo

WanDit = io.Custom("WAN_DIT")
WanDataset = io.Custom("WAN_DATASET")
WanLatents = io.Custom("WAN_LATENTS")
WanText = io.Custom("WAN_TEXT")
WanLora = io.Custom("WAN_LORA")
WanLoraPair = io.Custom("WAN_LORA_PAIR")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")


@dataclass(frozen=True)
class DitHandle:
    """A diffusion model file and how to hold it while training."""

    info: CheckpointInfo
    settings: dict[str, Any]  # precision and memory options, by their names on the node
    recovery_adapter: Path | None = None

    def __repr__(self) -> str:
        return f"DitHandle({self.info.path.name}, {self.settings})"


@dataclass(frozen=True)
class LoraHandle:
    """One LoRA file."""

    path: Path
    stage: Stage
    name: str
    step: int = 0

    def __repr__(self) -> str:
        return f"LoraHandle({self.path.name}, {self.stage})"


@dataclass(frozen=True)
class PairHandle:
    """The files that a user ships: one for each expert, or a single one."""

    high: Path | None
    low: Path | None

    @property
    def is_pair(self) -> bool:
        """Whether both experts have their file."""
        return self.high is not None and self.low is not None

"""Recipes that have proved themselves, as plain values by the names that settings have on the nodes."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..settings.stage import nest


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for the inputs of DatasetFromFolder, LoadWanDiT and TrainLoRAStage; what is absent has its default."""

    title: str
    description: str
    dataset: dict[str, Any] = field(default_factory=dict[str, Any])
    model: dict[str, Any] = field(default_factory=dict[str, Any])
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    epochs: int = 0  # `steps` is the one setting that depends on the data; 0: as `train` says
    lora_names: dict[str, str] = field(default_factory=dict[str, str])  # stage -> name of the file, with {name} in it

    def tables(self) -> dict[str, Any]:
        """The preset as tables of a recipe, without folder, models and name."""
        return {
            "dataset": dict(self.dataset),
            **nest({**self.model, **self.train}),
            **({"epochs": self.epochs} if self.epochs else {}),
        }


PRESETS = {
    # https://civitai.com/articles/17740 computes in fp16 over a base in fp8; here both are bf16, and the precisions fp16 and
    # fp8 are one setting away. Its trainer ignores the ratio of the lowest learning rate with a polynomial schedule; here
    # it counts, as it was meant.
    "wan2.2-t2v-images": Preset(
        title="Wan 2.2 T2V, from images",
        description="AI_Characters' recipe for Wan 2.2 T2V A14B: 100 epochs over captioned images at 960x960, with a "
        "high learning rate that falls steeply.",
        dataset={"width": 960, "height": 960, "aspect_buckets": True, "upscale": True, "caption_extension": ".txt"},
        model={"precision": "bf16", "checkpointing": "auto"},
        train={
            "learning_rate": 3e-4,
            "rank": 16,
            "alpha": 16.0,
            "batch_size": 1,
            "seed": 5,
            "timestep_sampling": "shift",
            "timestep_shift": 1.0,
            "boundary": 0.875,
            "gradient_accumulation": 1,
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "max_grad_norm": 0.0,
            "lr_schedule": "polynomial",
            "lr_floor": 5e-5,
            "lr_power": 8.0,
        },
        epochs=100,
        lora_names={"high": "WAN2.2-HighNoise_{name}", "low": "WAN2.2-LowNoise_{name}"},
    ),
}


def preset(name: str) -> Preset:
    """A preset by its name; ConfigError if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}': choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]

"""Everything about the training of one model that is a matter of choice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..limits import check_number, check_options
from ..serial import from_dict
from .adapter import AdapterOptions
from .loop import LoopOptions
from .loss import LossOptions
from .memory import MemoryOptions
from .optimizer import OptimizerOptions
from .plain import without_plain
from .precision import Precision
from .previews import PreviewOptions
from .schedule import ScheduleOptions
from .timesteps import TimestepOptions

TARGET_SETS = {
    "attention and ffn": ("self_attn", "cross_attn", "ffn"),
    "attention": ("self_attn", "cross_attn"),
    "self attention": ("self_attn",),
}

# The names of settings on nodes and in presets -> where they belong. The name itself if it is a field of StageSettings.
PLACES = {
    "rank": "adapter.rank",
    "alpha": "adapter.alpha",
    "targets": "adapter.targets",
    "dropout": "adapter.dropout",
    "timestep_sampling": "timesteps.sampling",
    "timestep_shift": "timesteps.shift",
    "sigmoid_scale": "timesteps.sigmoid_scale",
    "timestep_strata": "timesteps.strata",
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_grad_norm",
    "lr_schedule": "schedule.kind",
    "warmup_steps": "schedule.warmup_steps",
    "lr_floor": "schedule.floor",
    "lr_power": "schedule.power",
    "steps": "loop.steps",
    "batch_size": "loop.batch_size",
    "gradient_accumulation": "loop.gradient_accumulation",
    "seed": "loop.seed",
    "caption_dropout": "loop.caption_dropout",
    "checkpoint_every": "loop.checkpoint_every",
    "keep_last": "loop.keep_last",
    "validate_every": "loop.validate_every",
    "token_budget": "loop.token_budget",
    "checkpointing": "memory.checkpointing",
    "keep_attention": "memory.keep_attention",
    "keep_linears": "memory.keep_linears",
    "split_blocks": "memory.split_blocks",
    "ffn_pieces": "memory.ffn_pieces",
    "offload_inputs": "memory.offload_inputs",
    "offload_optimizer": "memory.offload_optimizer",
    "streamed_blocks": "memory.streamed_blocks",
    "stream_from": "memory.stream_from",
    "mapped_blocks": "memory.mapped_blocks",
    "attention": "memory.attention",
    "compile": "memory.compile",
    "cuda_graphs": "memory.cuda_graphs",
    "plan": "memory.plan",
    "budget_gb": "memory.budget_gb",
    "preview_every": "previews.every",
    "preview_steps": "previews.steps",
    "preview_cfg": "previews.cfg",
}


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Everything about the training of one model that is a matter of choice."""

    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    timesteps: TimestepOptions = field(default_factory=TimestepOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    previews: PreviewOptions = field(default_factory=PreviewOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    precision: Precision = "auto"
    boundary: float = 0.0  # sigma between the experts; 0: the official one of the model
    epochs: int = 0  # length of the run in epochs; 0: loop.steps
    device: str = "auto"

    def __post_init__(self) -> None:
        window = self.timesteps.sigma_min, self.timesteps.sigma_max
        if window != (0.0, 1.0):
            raise ConfigError(
                f"timesteps has the window {window[0]:g} to {window[1]:g}, but the window comes from the stage and "
                "'boundary': leave sigma_min and sigma_max out."
            )
        if self.epochs < 0:
            raise ConfigError(f"epochs must be 0 (use loop.steps) or more, got {self.epochs}.")
        for group in ("adapter", "timesteps", "optimizer", "schedule", "loop", "memory", "previews"):
            check_options(getattr(self, group), group)
        check_number(self.boundary, "boundary", 0, 1)
        check_number(self.epochs, "epochs", 0, 1_000_000)


def settings_from_names(values: Mapping[str, Any]) -> StageSettings:
    """Settings by their names on nodes; what is absent has its default. ConfigError for an unknown name or type."""
    return from_dict(StageSettings, nest(values), "settings")


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names on nodes, as the tables of a recipe: {"rank": 4} to {"adapter": {"rank": 4}}."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        if name == "targets":
            if value not in TARGET_SETS:
                raise ConfigError(f"targets is '{value}': choose one of {', '.join(TARGET_SETS)}.")
            value = list(TARGET_SETS[value])
        group, _, key = PLACES.get(name, name).rpartition(".")
        if group == "memory" and not without_plain({key: value}):
            continue  # on a node, where each has a value, this one means "auto"
        (tables.setdefault(group, {}) if group else tables)[key] = value
    return tables

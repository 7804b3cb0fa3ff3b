"""What a LoRA file says about itself: ModelSpec for humans and libraries, `ss_*` for LoRA tools, ours for resuming.

Two readers set limits. ComfyUI's front end (1.49) takes `workflow` and `prompt` from the header of a .safetensors file
dropped on the canvas, if the header ends within the first 4 MiB; its model library gets the header from the server,
which refuses more than 1 MiB, and shows title, author, description, trigger phrase, tags and resolution.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..errors import ConfigError
from ..wan.config import WanConfig
from .named_expert import TRAINED_THROUGH

# The server's limit is 1 MiB for the whole header; the entries of a 14B LoRA's tensors take about 150 KiB of it.
MAX_METADATA_BYTES = 768 * 1024
_EXPENDABLE = ("ss_tag_frequency", "prompt", "wantrain.job", "workflow")  # left out in this order when too long

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # of UTF-16: JSON may hold one, UTF-8 may not

_SIZES = {1536: "1.3b", 3072: "5b", 5120: "14b"}
_IMPLEMENTATION = "https://github.com/Wan-Video/Wan"


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How a LoRA was trained, in the terms of kohya's `ss_*` keys. Times are Unix seconds."""

    learning_rate: float
    optimizer: str
    lr_scheduler: str
    steps: int
    max_steps: int
    seed: int
    batch_size: int = 1
    gradient_accumulation: int = 1
    num_samples: int = 0
    dropout: float = 0.0
    tag_frequency: dict[str, int] = field(default_factory=dict)  # caption -> how often it occurs
    dataset_name: str = "dataset"
    levels: Mapping[str, str | float] = field(default_factory=dict)  # noise levels and loss, by their `ss_*` keys
    started_at: float | None = None
    finished_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoraDescription:
    """Everything that goes into a LoRA's header, given from outside, so that equal input gives an equal file."""

    name: str  # output name, without folder and ending
    base_model: str  # as `base_model_name` makes it: "wan2.2-t2v-a14b"
    rank: int
    alpha: float
    date: str  # ISO 8601
    network_module: str = "networks.lora_wan"  # musubi-tuner's name for a plain LoRA on Wan
    network_args: Mapping[str, str] = field(default_factory=dict[str, str])  # what else there is to say of the adapter
    title: str = ""
    author: str = ""
    description: str = ""
    license: str = ""
    trigger_phrase: str = ""
    tags: tuple[str, ...] = ()
    merged_from: tuple[str, ...] = ()
    resolution: tuple[int, int] | None = None  # width, height in pixels
    timestep_range: tuple[int, int] | None = None  # lowest and highest timestep trained, 0 to 1000
    weights: str = ""  # where the run kept an average (EMA): "ema" or "trained", whichever the file holds
    experts: tuple[str, ...] = ()  # those that it was trained through, where it is one LoRA for several
    training: TrainingFacts | None = None  # None for files that were merged or converted
    job: dict[str, Any] | None = None
    workflow: dict[str, Any] | None = None  # as the host passes it in extra_pnginfo
    prompt: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"wan\d+\.\d+-[a-z0-9_.-]+", self.base_model):
            raise ConfigError(f"base_model is '{self.base_model}'; it must look like 'wan2.2-t2v-a14b'.")
        try:
            datetime.fromisoformat(self.date.removesuffix("Z"))  # Python 3.10 does not know "Z"
        except ValueError as error:
            raise ConfigError(f"date is '{self.date}'; it must be in ISO 8601, like 2026-01-31T12:00:00.") from error
        if self.timestep_range is not None:
            start, stop = self.timestep_range
            if not 0 <= start < stop <= 1000:
                raise ConfigError(f"timestep_range is {start},{stop}; it must rise and lie between 0 and 1000.")


def base_model_name(config: WanConfig, *, is_expert: bool) -> str:
    """Name of the base model: "wan2.1-t2v-1.3b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b".

    Wan 2.1 T2V 14B and an expert of Wan 2.2 have the same tensors, so `is_expert` is passed in; a CLIP branch is 2.1's,
    image-to-video without one 2.2's. Unknown sizes are named by their width.
    """
    has_clip, from_image = config.image_dim is not None, config.variant in ("i2v", "flf2v", "ti2v")
    version = "2.2" if (is_expert or from_image) and not has_clip else "2.1"
    size = _SIZES.get(config.dim, f"dim{config.dim}")
    if version == "2.2" and size == "14b":
        size = "a14b"
    return f"wan{version}-{config.variant}-{size}".replace("_", "-")


def lora_metadata(description: LoraDescription) -> dict[str, str]:
    """The header's string map, without the content hashes, which `write_lora` adds.

    The longest expendable entries are left out when the map would exceed `MAX_METADATA_BYTES`, and a workflow or prompt
    that is no JSON; "wantrain.left_out" then names them. Half surrogate pairs, which no file can hold, become U+FFFD, and
    numbers that are not finite, which no browser reads, null.
    """
    metadata = {**_modelspec(description), **_kohya(description)}
    if description.weights:
        metadata["wantrain.weights"] = description.weights
    if description.experts:
        metadata[TRAINED_THROUGH] = ",".join(description.experts)
    left_out: list[str] = []
    for key, value in (
        ("wantrain.job", description.job),
        ("workflow", description.workflow),
        ("prompt", description.prompt),
    ):
        if value is not None:
            try:
                metadata[key] = _json(value)
            except (TypeError, ValueError, RecursionError):  # the end of a run must not fail for what others put in it
                left_out.append(key)
    metadata = {key: _text(value) for key, value in metadata.items()}
    for key in _EXPENDABLE:
        if key in metadata and _size(metadata) > MAX_METADATA_BYTES:
            del metadata[key]
            left_out.append(key)
        if left_out:
            metadata["wantrain.left_out"] = ",".join(left_out)
    return metadata


def _modelspec(d: LoraDescription) -> dict[str, str]:
    """ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec); `timestep_range` is musubi-tuner's addition."""
    version = "2.2" if d.base_model.startswith("wan2.2") else "2.1"
    optional = {
        "author": d.author,
        "description": d.description,
        "license": d.license,
        "trigger_phrase": d.trigger_phrase,
        "tags": ",".join(d.tags),
        "merged_from": ",".join(d.merged_from),
        "resolution": f"{d.resolution[0]}x{d.resolution[1]}" if d.resolution else "",
        "timestep_range": f"{d.timestep_range[0]},{d.timestep_range[1]}" if d.timestep_range else "",
    }
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{d.base_model}/lora",
        "modelspec.implementation": f"{_IMPLEMENTATION}{version}",
        "modelspec.title": d.title or d.name,
        "modelspec.date": d.date,
        **{f"modelspec.{key}": value for key, value in optional.items() if value},
    }


def _kohya(d: LoraDescription) -> dict[str, str]:
    """kohya's keys, as strings; what is not known is absent rather than "None"."""
    facts: dict[str, Any] = {
        "ss_output_name": d.name,
        "ss_base_model_version": d.base_model,
        "ss_network_module": d.network_module,
        "ss_network_dim": d.rank,
        "ss_network_alpha": f"{d.alpha:g}",
        "ss_network_args": _json(dict(d.network_args)) if d.network_args else None,
    }
    t = d.training
    if t is not None:
        facts |= {
            "ss_network_dropout": t.dropout,
            "ss_learning_rate": t.learning_rate,
            "ss_optimizer": t.optimizer,
            "ss_lr_scheduler": t.lr_scheduler,
            "ss_steps": t.steps,
            "ss_max_train_steps": t.max_steps,
            "ss_seed": t.seed,
            "ss_batch_size_per_device": t.batch_size,
            "ss_gradient_accumulation_steps": t.gradient_accumulation,
            "ss_num_train_items": t.num_samples,
            **t.levels,
            "ss_training_started_at": t.started_at,
            "ss_training_finished_at": t.finished_at,
            "ss_tag_frequency": _json({t.dataset_name: t.tag_frequency}) if t.tag_frequency else None,
        }
    return {key: str(value) for key, value in facts.items() if value is not None}


def _json(value: Any) -> str:
    return json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _text(value: str) -> str:
    return _HALF_PAIR.sub("\N{REPLACEMENT CHARACTER}", value)


def _size(metadata: Mapping[str, str]) -> int:
    return len(_json(dict(metadata)).encode())

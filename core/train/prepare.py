"""The one place where features are applied to the model, in one order:

load -> adapter -> run_block = checkpointing(run_block). What is off is not applied.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..adapters.setup import add_adapter
from ..data.conditioning import Conditioning
from ..errors import ConfigError
from ..memory.checkpointing import with_checkpointing
from ..wan.checkpoint import CheckpointInfo, inspect, load_transformer
from ..wan.config import Variant
from ..wan.model import WanTransformer
from .job import DataSpec, Job, ModelSpec


@dataclass(frozen=True)
class Prepared:
    """A model ready to train."""

    model: WanTransformer
    parameters: list[torch.nn.Parameter]
    device: torch.device
    dtype: torch.dtype


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"the device '{name}' is not known: use auto, cpu, cuda:0, cuda:1, ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"the device '{name}' is not there: this machine shows {torch.cuda.device_count()} GPU(s).")
    return device


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Compute dtype of the frozen base: `auto` is bf16 on a GPU and fp32 on the CPU."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def check_model_file(spec: ModelSpec) -> CheckpointInfo:
    """The file as it is now; ConfigError if its content is not what the job was made for."""
    info = inspect(Path(spec.path))
    if info.identity != spec.identity:
        raise ConfigError(
            f"{spec.path} is not the file that this run was started with (its content changed): "
            "restore it, or start a new run."
        )
    return info


def check_data(job: Job, info: CheckpointInfo) -> None:
    """Refuse latents or text embeddings that do not belong to this model, before it is loaded."""
    if job.data.text_dim != info.config.text_dim:
        raise ConfigError(
            f"the text embeddings have width {job.data.text_dim}, but {info.path.name} needs {info.config.text_dim}: "
            "cache the captions with the umT5 text encoder that belongs to this model."
        )
    for sample in job.data.samples:
        channels = sample.shape[0]
        if channels != info.config.out_dim:
            raise ConfigError(
                f"{sample.name} has {channels} latent channels, but {info.path.name} needs {info.config.out_dim}: "
                f"cache the latents with the {'Wan 2.2' if info.config.out_dim == 48 else 'Wan 2.1'} VAE."
            )

    _check_conditioning(job.data, info)


# What each variant wants to be given, by what condition_on may be.
_CONDITIONINGS: dict[Variant, tuple[Conditioning, ...]] = {
    "t2v": ("none",),
    "i2v": ("first frame", "first and last frame"),
    "flf2v": ("first and last frame",),
    "ti2v": ("none", "first frame"),
}


def _check_conditioning(data: DataSpec, info: CheckpointInfo) -> None:
    config, name = info.config, info.path.name
    wanted = _CONDITIONINGS.get(config.variant, ())
    if data.conditioning not in wanted:
        kind = "text-to-video" if config.variant == "t2v" else "image-to-video"
        choices = " or ".join(f"'{choice}'" for choice in wanted)
        raise ConfigError(
            f"the latents were cached with condition_on '{data.conditioning}', but {name} is a model for {kind} "
            f"({config.variant}): set condition_on of Cache Latents to {choices}."
        )
    has_features = any(sample.vision_path for sample in data.samples)
    if config.image_dim and not has_features:
        raise ConfigError(
            f"{name} needs the CLIP features of the given frames: connect clip_vision_h.safetensors (Load CLIP Vision) to "
            "Cache Latents."
        )
    if has_features and not config.image_dim:
        raise ConfigError(f"{name} takes no CLIP features: disconnect the CLIP vision model from Cache Latents.")


def prepare(job: Job, device: torch.device) -> Prepared:
    """Load the base frozen onto `device`, add the adapter, and apply the memory features."""
    info = check_model_file(job.model)
    check_data(job, info)
    dtype = resolve_dtype(job.model.precision, device)
    model = load_transformer(info, dtype=dtype, device=device)
    parameters = [parameter for _, parameter in add_adapter(model, job.adapter, seed=job.loop.seed)]
    if job.memory.checkpointing:
        model.run_block = with_checkpointing(model.run_block)
    return Prepared(model, parameters, device, dtype)

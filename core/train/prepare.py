"""From a job to a model ready to train: checks, base, adapter, memory features."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapters.peft_hooks import finish_importing_adapters
from ..adapters.setup import add_adapter, use_light_forward
from ..errors import ConfigError
from ..memory.attention import Decided
from ..memory.int4 import LowRank
from ..memory.master import BlockMaster
from ..memory.precision import (
    FormatOptions,
    Resolved,
    known_precision,
    needed_by_precision,
    needs_adapter,
    resolve,
)
from ..memory.recompute import Kept
from ..memory.streaming import spread, spread_mapped
from ..paths import path_problem, shown
from ..plan.sizes import Sizes
from ..settings.dataset import Conditioning
from ..settings.job import DataSpec, Job, ModelSpec
from ..settings.memory import MasterKind, MemoryOptions
from ..settings.precision import Precision
from ..wan.checkpoint import CheckpointInfo, inspect, load_transformer
from ..wan.config import Variant
from ..wan.model import WanTransformer
from ..wan.recovery import file_identity, read_recovery_adapter
from .features import Features, Tell, apply_features, blocks_folder, usable_mode, use_decided

if TYPE_CHECKING:
    from ..kernels.warm import Needs, Warming

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A model ready to train."""

    model: WanTransformer
    parameters: list[nn.Parameter]
    device: torch.device
    dtype: torch.dtype
    features: Features


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none. ConfigError for what is no device that can train."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unknown_device(name) from error
    if device.type not in DEVICE_TYPES:  # torch knows more: "meta" has no numbers, others are for libraries
        raise _unknown_device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"the device '{name}' is not there: this machine shows {torch.cuda.device_count()} GPU(s).")
    return device


def _unknown_device(name: str) -> ConfigError:
    return ConfigError(f"the device '{shown(name)}' is not known: use auto, cpu, cuda:0, cuda:1, ...")


def check_model_file(spec: ModelSpec) -> CheckpointInfo:
    """The file as it is now; ConfigError if its content is not what the job was made for, or it is no plain file."""
    problem = path_problem(spec.path, folders=True)
    if problem:
        raise ConfigError(f"the model file '{shown(spec.path)}' {problem}: bring it back, or start a new run.")
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
    check_holding(info, job.model.precision, job.memory, has_adapter=bool(job.model.recovery_adapter))


def check_holding(info: CheckpointInfo, precision: Precision, memory: MemoryOptions, *, has_adapter: bool) -> None:
    """Refuse ways to hold the base that this model, or the choice of files, does not allow."""
    for name in ("streamed_blocks", "keep_attention", "keep_linears"):
        number = getattr(memory, name)
        if number > info.config.num_layers:
            raise ConfigError(f"{name} is {number}, but {info.path.name} has {info.config.num_layers} blocks.")
    if has_adapter != needs_adapter(precision):
        raise ConfigError(
            "the precision ara and a recovery adapter go together: choose both, or none (int4_svd needs no file)."
        )


# What each variant wants to be given, by what condition_on may be.
CONDITIONINGS_OF: dict[Variant, tuple[Conditioning, ...]] = {
    "t2v": ("none",),
    "i2v": ("first frame", "first and last frame"),
    "flf2v": ("first and last frame",),
    "ti2v": ("none", "first frame"),
}


def _check_conditioning(data: DataSpec, info: CheckpointInfo) -> None:
    config, name = info.config, info.path.name
    wanted = CONDITIONINGS_OF.get(config.variant, ())
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


def prepare(
    job: Job,
    device: torch.device,
    *,
    tell: Tell = log.warning,
    scratch: Path | None = None,
    kept: Mapping[int, Kept] | None = None,
    decided: Decided | None = None,
) -> Prepared:
    """Load the base frozen onto `device`, add the adapter, and apply the memory features just as the job has them.

    `tell` is given a sentence for everything that turned out otherwise than asked. `scratch` is a folder for what may be
    used again and may be deleted: compiled code, and mapped blocks, which need it. `kept`, `decided`: see
    `apply_features` and `use_decided`.
    """
    info = check_model_file(job.model)
    check_data(job, info)
    if needed_by_precision(job.model.precision):  # packages that are hidden until then
        finish_importing_adapters()
    held = resolve(
        job.model.precision, device, weights=info.weights, options=FormatOptions(adapter=_recovery_adapter(job))
    )
    for sentence in held.warnings:
        tell(sentence)
    warming = _start_kernels(job, device, info, held.dtype, scratch)
    with timed("Reading the model"):
        model, masters = _load(info, held, job.memory, device, scratch)
    with timed("Waiting for peft"):
        finish_importing_adapters()
    with timed("Adding the adapter"):
        parameters = [parameter for _, parameter in add_adapter(model, job.adapter, seed=job.loop.seed)]
        use_light_forward(model)
    with timed("Trying the compiler and the kinds of attention"):
        is_decided = decided is not None and use_decided(model, job, device, decided)
        features = apply_features(
            model, job, device, tell=tell, scratch=scratch, kept=kept, masters=masters, again=is_decided
        )
        if decided is not None and is_decided:
            features = replace(features, attention=decided.name)
    if warming is not None:
        with timed("Waiting for the kernels"):
            warming.wait()
    return Prepared(model, parameters, device, held.dtype, features)


def _start_kernels(
    job: Job, device: torch.device, info: CheckpointInfo, dtype: torch.dtype, scratch: Path | None
) -> "Warming | None":
    """Begin to make the kernels ready that the blocks will run by, if they will; it goes on beside the reading."""
    if device.type != "cuda" or usable_mode(job, device, scratch, log.debug) != "kernels":
        return None
    from ..kernels.warm import Warming

    return Warming(needs_of(job, info.config, device, dtype))


def needs_of(job: Job, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> "Needs":
    """The kernels that the blocks of the job's model run by; `dtype` is that of their arithmetic."""
    from ..kernels.warm import Needs

    kind = known_precision(job.model.precision)
    return Needs(
        device=device,
        dtype=dtype,
        dim=sizes.dim,
        ffn_dim=sizes.ffn_dim,
        head_dim=sizes.dim // sizes.num_heads,
        quantizes=kind is not None and kind.multiplies_in_fp8,
        weights=kind.kernel_weight if kind else None,
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long it took."""
    start = time.perf_counter()
    yield
    log.info("%s took %.1f s.", what, time.perf_counter() - start)


def _load(
    info: CheckpointInfo, held: Resolved, memory: MemoryOptions, device: torch.device, scratch: Path | None
) -> tuple[WanTransformer, dict[int, BlockMaster]]:
    """The base, and the masters of its streamed blocks, which are made one by one: the rest never is in main memory."""
    streamed = spread(memory.streamed_blocks, info.config.num_layers)
    mapped = spread_mapped(memory.mapped_blocks, streamed)
    kinds: dict[int, MasterKind] = {index: "mapped" if index in mapped else memory.stream_from for index in streamed}
    folder = blocks_folder(memory, scratch)
    masters: dict[int, BlockMaster] = {}

    def device_of(index: int | None) -> torch.device:
        # A GPU quantizes faster and knows its kernels; from there the master takes the block, which is small by then.
        return torch.device("cpu") if index in kinds and held.linear is None else device

    def make_master(index: int, block: nn.Module) -> None:
        kind = kinds.get(index)
        if kind is not None:
            masters[index] = BlockMaster(block, kind, device=device, folder=folder if kind == "mapped" else None)

    model = load_transformer(info, dtype=held.dtype, device=device_of, linear=held.linear, loaded=make_master)
    return model, masters


def _recovery_adapter(job: Job) -> Mapping[str, LowRank]:
    spec = job.model
    if not spec.recovery_adapter:
        return {}
    path = Path(spec.recovery_adapter)
    if file_identity(path) != spec.recovery_identity:
        raise ConfigError(
            f"{path} is not the recovery adapter that this run was started with (its content changed): restore it, or "
            "start a new run."
        )
    return read_recovery_adapter(path, None if job.stage == "single" else job.stage)

"""Whether a job's model file is the one it was made for, and whether data and options go with it. Nothing large is read."""

from pathlib import Path

from ..adapters.places import check_patterns
from ..errors import CLIP_VISION, CONDITION_ON, ConfigError
from ..memory.precision import needs_adapter
from ..paths import path_problem, shown
from ..plan.decision import memory_of
from ..plan.sizes import layer_paths
from ..plan.words import label
from ..routes import read_routes, routes_among
from ..settings.dataset import Conditioning
from ..settings.groups import Groups
from ..settings.job import DataSpec, Job, ModelSpec
from ..settings.memory import MemoryOptions
from ..settings.precision import Precision
from ..wan.checkpoint import CheckpointInfo, inspect
from ..wan.config import Variant
from .crepa import check_crepa
from .regularizers import check_regularizers
from .skip_blocks import block_numbers


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
                f"cache the latents with the {info.config.latent_format.replace('wan', 'Wan ')} VAE."
            )

    _check_conditioning(job.data, info)
    check_patterns(job.adapter, layer_paths(info.config))
    check_blocks(job, info)
    memory_of(job)  # which refuses what does not go with the kind of adapter
    check_regularizers(job)
    if job.parallel.base == "sharded" and job.memory.checkpointing is False:
        raise ConfigError("a sharded base needs checkpointing: switch it on, or have the base whole on each GPU.")
    check_holding(info, job.model.precision, job.memory, has_adapter=bool(job.model.recovery_adapter))


def check_blocks(groups: Groups, info: CheckpointInfo) -> None:
    """ConfigError for blocks that are named by number, and that the model has not."""
    blocks = info.config.num_layers
    routes_among(read_routes(groups.tread.routes), blocks)
    check_crepa(groups, info)
    if groups.previews.every:
        block_numbers(groups.previews.skip_layers, blocks)


def check_holding(info: CheckpointInfo, precision: Precision, memory: MemoryOptions, *, has_adapter: bool) -> None:
    """Refuse ways to hold the base that this model, or the choice of files, does not allow."""
    for name in ("streamed_blocks", "keep_attention", "keep_linears", "offload_linears"):
        number = getattr(memory, name)
        if number is not None and number > info.config.num_layers:
            raise ConfigError(f"{label(name)} is {number}, but {info.path.name} has {info.config.num_layers} blocks.")
    if has_adapter != needs_adapter(precision):
        raise ConfigError(
            "the precision ara and a recovery adapter go together: choose both, or none (int4_svd needs no file)."
        )


PAIRED_ADVICE = "leave control_clips and reference_pictures empty, and both out of frames_file"

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
            f"({config.variant}): cache them with condition_on {choices}.",
            about=CONDITION_ON,
        )
    paired = next((sample for sample in data.samples if sample.control_path or sample.reference_path), None)
    if paired is not None:
        what = "control clip" if paired.control_path else "reference picture"
        raise ConfigError(f"{paired.name} has a {what}, but {name} is given none: {PAIRED_ADVICE}.")
    has_features = any(sample.vision_path for sample in data.samples)
    if config.image_dim and not has_features:
        raise ConfigError(
            f"{name} needs the CLIP features of the given frames: cache the latents with clip_vision_h.safetensors.",
            about=CLIP_VISION,
        )
    if has_features and not config.image_dim:
        raise ConfigError(
            f"{name} takes no CLIP features: cache the latents without a CLIP vision model.", about=CLIP_VISION
        )


def check_job(job: Job) -> CheckpointInfo:
    """The job's model file, after all checks of this file: what a run makes once, before anything is decided or loaded."""
    info = check_model_file(job.model)
    check_data(job, info)
    return info

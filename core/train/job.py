"""The whole configuration of one training run, frozen: what `job.json` in a run folder holds."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..adapters.setup import AdapterOptions
from ..adapters.ship import check_name
from ..data.conditioning import Conditioning
from ..data.types import LatentCache, TextCache
from ..errors import ConfigError, RunError
from ..flow.objective import NUM_TIMESTEPS
from ..flow.sigmas import TimestepOptions
from ..limits import check_amount, check_number, check_options, check_shape, check_texts
from ..memory.master import MasterKind
from ..memory.precision.formats import Precision
from ..paths import shown
from ..safe_json import parse_json, unseal
from ..sample.sampler import SampleOptions, schedule, switch_step
from ..serial import check_depth, digest, from_dict, to_dict
from ..wan.config import Variant
from .optimizers import OptimizerOptions
from .schedule import ScheduleOptions

SCHEMA = 1
Stage = Literal["high", "low", "single"]
# auto: kernels on a GPU where Triton works, else off. static and dynamic: by torch.compile, where a compiler works.
Compile = Literal["auto", "off", "kernels", "static", "dynamic"]
CudaGraphs = Literal["auto", "off"]
# auto: what a plan of memory and time says is fastest, within what is set away from its default; manual: as it is set.
PlanMode = Literal["auto", "manual"]
# default: what PyTorch chooses; auto: the fastest that is right here, found by measuring; or one by its name.
Attention = Literal["default", "auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "cudnn", "flash", "efficient"]

# Where the high-noise expert hands over to the low-noise expert, as sigma (Wan2.2, wan/configs/wan_t2v_A14B.py and
# wan_i2v_A14B.py).
BOUNDARY_T2V_A14B = 0.875
BOUNDARY_I2V_A14B = 0.900


def official_boundary(variant: Variant) -> float:
    """The boundary between the experts of the A14B model of this variant."""
    return BOUNDARY_I2V_A14B if variant in ("i2v", "flf2v") else BOUNDARY_T2V_A14B


def stage_window(stage: Stage, boundary: float) -> tuple[float, float]:
    """The sigmas that the model of this stage sees when it generates. A LoRA is labelled with them in thousandths."""
    if not 0 < round(boundary * NUM_TIMESTEPS) < NUM_TIMESTEPS:
        raise ConfigError(f"boundary is a sigma between 0 and 1 (0.875 for T2V-A14B), got {boundary}.")
    return {"high": (boundary, 1.0), "low": (0.0, boundary), "single": (0.0, 1.0)}[stage]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The frozen base."""

    path: str
    identity: str  # digest of the file's content
    precision: Precision = "auto"  # auto: bf16 on a GPU that has it, fp32 on the CPU
    recovery_adapter: str = ""  # precision "ara": its file
    recovery_identity: str = ""  # digest of that file's content
    label: str = ""  # for metadata: wan2.1-t2v-1.3b, wan2.1-t2v-14b, wan2.2-t2v-a14b


@dataclass(frozen=True, kw_only=True)
class TrainSample:
    """One sample: its latents and its caption's embedding, both on disk."""

    name: str
    latents_path: str
    latents_key: str
    shape: tuple[int, int, int, int]  # C, F, H, W
    text_path: str
    text_key: str
    caption: str
    repeats: int = 1
    held_out: bool = False
    known_path: str = ""  # image-to-video: latents of the known frames, with grey elsewhere
    known_key: str = ""
    vision_path: str = ""  # Wan 2.1 image-to-video: CLIP features of the known frames
    vision_key: str = ""

    def __post_init__(self) -> None:
        check_texts(
            "a sample",
            words=(self.name, self.latents_key, self.text_key, self.known_key, self.vision_key),
            paths=self.paths,
            captions=(self.caption,),
        )
        if self.repeats < 1:
            raise ConfigError(f"{shown(self.name)} has {self.repeats} repeats: 1 is the least.")
        check_shape(self.shape, shown(self.name))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of everything that was cached of it; "" for what it has not."""
        return self.latents_path, self.text_path, self.known_path, self.vision_path


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """All samples, and the embedding of the empty caption."""

    samples: tuple[TrainSample, ...]
    empty_text_path: str
    empty_text_key: str
    text_dim: int  # width of the text embeddings
    conditioning: Conditioning = "none"  # the frames that the model is given
    fps: float = 16.0  # of the clips

    def __post_init__(self) -> None:
        check_texts("data", words=(self.empty_text_key,), paths=(self.empty_text_path,))
        check_number(self.text_dim, "data.text_dim", 1, 1_000_000)
        check_number(self.fps, "data.fps", 0.01, 1000)
        check_amount((sample.repeats for sample in self.samples), "the dataset")

    @property
    def gives_first_frame(self) -> bool:
        """Whether the first frame is given in place of the first latent frame, as TI2V-5B has it."""
        return self.conditioning != "none" and not any(sample.known_path for sample in self.samples)


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


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What trades time for memory, and faster kernels. Results change by rounding at most: attention and compile."""

    checkpointing: bool = True  # keep only block inputs; recompute each block in the backward pass
    keep_attention: int = 0  # blocks that keep their self-attention instead of computing it again
    keep_linears: int = 0  # blocks that keep what their linear layers give, and their self-attention
    split_blocks: bool = False  # recompute the three parts of a block one by one in the backward pass
    ffn_pieces: int = 1  # into which the tokens are cut for a block's feed-forward, one after another
    offload_inputs: bool = False  # block inputs wait for the backward pass in main memory
    offload_optimizer: bool = False  # AdamW's moments wait for the update in main memory
    streamed_blocks: int = 0  # blocks whose frozen weights stay in main memory and visit the device when needed
    stream_from: MasterKind = "pinned"
    mapped_blocks: int = 0  # of the streamed blocks, those that come from files, whatever the others come from
    attention: Attention = "auto"
    compile: Compile = "auto"  # kernels: our own; static: torch.compile for each size of clips; dynamic: once for all
    cuda_graphs: CudaGraphs = "auto"  # record the kernels of a step of small clips, and launch them at once
    plan: PlanMode = "auto"
    budget_gb: float = 0.0  # most memory of the device, in GiB, that a run may take; 0: what is free

    def __post_init__(self) -> None:
        for name in ("keep_attention", "keep_linears", "streamed_blocks", "mapped_blocks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is a number of blocks, 0 or more; got {getattr(self, name)}.")
        self._check_pieces()
        self._check_mapped()
        for name in ("keep_attention", "keep_linears", "split_blocks", "offload_inputs", "streamed_blocks"):
            if getattr(self, name) and not self.checkpointing:
                raise ConfigError(f"{name} needs checkpointing: switch it on, or leave {name} off.")
        if self.split_blocks and self.keep_linears:
            raise ConfigError("split_blocks saves what keep_linears would keep: leave one of them off.")
        if not 0.0 <= self.budget_gb < math.inf:
            raise ConfigError(f"budget_gb must be 0 (what is free) or a number of GB, got {self.budget_gb}.")

    def _check_mapped(self) -> None:
        if self.mapped_blocks > self.streamed_blocks:
            raise ConfigError(
                f"mapped_blocks is {self.mapped_blocks}, but streamed_blocks is {self.streamed_blocks}: of the streamed blocks "
                "it says how many come from disk. Choose at most so many, or leave it at 0."
            )
        if self.mapped_blocks and self.stream_from == "mapped":
            raise ConfigError(
                "mapped_blocks has no meaning with stream_from mapped, where all streamed blocks come from disk: leave it at "
                "0, or choose pinned or pageable for the others."
            )

    def _check_pieces(self) -> None:
        if self.ffn_pieces < 1:
            raise ConfigError(f"ffn_pieces is a number of pieces, 1 (the whole) or more; got {self.ffn_pieces}.")
        if self.ffn_pieces > 1 and not self.checkpointing:
            raise ConfigError("ffn_pieces needs checkpointing: switch it on, or leave ffn_pieces at 1.")
        if self.ffn_pieces > 1 and self.split_blocks:
            raise ConfigError("ffn_pieces is for whole blocks: leave it at 1, or switch split_blocks off.")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Videos made while the LoRA learns, with what it is then."""

    every: int = 0  # steps between two; 0: none
    steps: int = 16  # of the sampler, over the whole way from noise
    cfg: float = 5.0  # guidance away from the empty caption; 1: none, and half the time
    shift: float = 5.0  # time shift of the sampler

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"preview_every must be 0 (no previews) or a number of steps, got {self.every}.")
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise ConfigError(f"preview_steps must lie between 1 and {NUM_TIMESTEPS}, got {self.steps}.")
        if not 0.0 <= self.cfg < math.inf:
            raise ConfigError(f"preview_cfg must be 0 or more (1 for no guidance), got {self.cfg}.")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift of previews must be above 0 (5 for most models), got {self.shift}.")

    def sampling(self, boundary: float) -> SampleOptions:
        """How they are sampled, with the experts' boundary as sigma."""
        return SampleOptions(steps=self.steps, shift=self.shift, cfg=self.cfg, boundary=boundary)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run needs, and nothing that it finds out."""

    schema: int = SCHEMA
    name: str
    stage: Stage
    model: ModelSpec
    data: DataSpec
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    timesteps: TimestepOptions = field(default_factory=TimestepOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    previews: PreviewOptions = field(default_factory=PreviewOptions)
    preview_vae: str = ""  # file of the VAE for previews, where no node follows the run that decodes them with its own
    device: str = "auto"
    trigger_word: str = ""  # for the LoRA's metadata; the captions hold it already

    def __post_init__(self) -> None:
        self._check_fields()
        if not any(not sample.held_out for sample in self.data.samples):
            raise ConfigError("there is no sample to train on: every one is held out for validation.")
        boundary = self.timesteps.sigma_max
        if self.previews.every and self.stage == "low" and not self._previews_reach_below(boundary):
            raise ConfigError(
                f"preview_steps is {self.previews.steps}, and none of these steps is below the boundary {boundary:g}, "
                "where the low noise expert works: raise preview_steps, or set preview_every to 0."
            )

    def _check_fields(self) -> None:
        """Whoever wrote them: names become names of files, numbers loops and sizes."""
        check_name(self.name)
        model = self.model
        check_texts(
            "the job",
            words=(model.identity, model.recovery_identity, model.label, self.device, self.trigger_word),
            paths=(model.path, model.recovery_adapter, self.preview_vae),
        )
        for group in ("adapter", "timesteps", "optimizer", "schedule", "loop", "memory", "previews"):
            check_options(getattr(self, group), group)

    def _previews_reach_below(self, boundary: float) -> bool:
        sigmas = schedule(self.previews.sampling(boundary))
        return switch_step(sigmas, boundary) < self.previews.steps

    @property
    def key(self) -> str:
        """Digest of what decides the trained weights: the content of data and model, and the settings.

        Names, paths, device, memory options, previews and the rhythm of checkpoints are left out. So is the length where the
        schedule does not depend on it: a longer run then goes on from a shorter one.
        """
        loop = replace(self.loop, checkpoint_every=1, keep_last=1, validate_every=1)
        if self.schedule.kind == "constant":
            loop = replace(loop, steps=1)
        samples = [[s.latents_key, s.text_key, s.repeats, s.held_out] for s in self.data.samples]
        settings = [self.adapter, self.timesteps, self.optimizer, self.schedule]
        model = [self.model.identity, self.model.precision]
        rhythm = to_dict(loop)
        if not loop.token_budget:  # an option of later: runs from before are still found
            del rhythm["token_budget"]
        parts = [SCHEMA, self.stage, model, samples, self.data.empty_text_key, *map(to_dict, settings), rhythm]
        if self.model.recovery_identity:
            parts += [self.model.recovery_identity]
        if self.data.conditioning != "none":
            parts += [self.data.conditioning, [[s.known_key, s.vision_key] for s in self.data.samples]]
        return digest(parts)

    @property
    def training_samples(self) -> tuple[TrainSample, ...]:
        """Samples that are trained on."""
        return tuple(s for s in self.data.samples if not s.held_out)

    @property
    def held_out_samples(self) -> tuple[TrainSample, ...]:
        """Samples kept for the validation loss."""
        return tuple(s for s in self.data.samples if s.held_out)

    def warnings(self) -> list[str]:
        """Settings that have no effect in this job, one sentence each."""
        found = []
        schedule, timesteps = self.schedule, self.timesteps
        if schedule.kind == "constant" and schedule.floor:
            found.append("lr_floor has no effect with the constant schedule.")
        if schedule.kind != "polynomial" and schedule.power != ScheduleOptions().power:
            found.append(f"lr_power has no effect with the {schedule.kind} schedule; it belongs to polynomial.")
        if schedule.warmup_steps >= self.loop.steps:
            found.append(
                f"warmup_steps ({schedule.warmup_steps}) is not shorter than the run ({self.loop.steps} steps)."
            )
        if timesteps.sampling != "shift" and timesteps.shift != TimestepOptions().shift:
            found.append(f"timestep_shift has no effect with {timesteps.sampling} sampling; it belongs to shift.")
        if timesteps.sampling == "uniform" and timesteps.sigmoid_scale != TimestepOptions().sigmoid_scale:
            found.append("sigmoid_scale has no effect with uniform sampling.")
        if self.loop.token_budget and self.loop.batch_size == 1:
            found.append("token_budget has no effect with batch_size 1, which is the most that a batch holds.")
        memory = self.memory
        is_default = memory.stream_from == MemoryOptions().stream_from
        if memory.plan == "manual" and not memory.streamed_blocks and not is_default:
            found.append("stream_from has no effect: no block is streamed (see streamed_blocks).")
        if not self.held_out_samples and self.loop.validate_every != LoopOptions().validate_every:
            found.append("validate_every has no effect: no sample is held out (see held_out of the dataset).")
        if not self.previews.every and self.previews != PreviewOptions():
            found.append("the other options of previews have no effect: preview_every is 0.")
        return found


def data_spec(latents: LatentCache, text: TextCache) -> DataSpec:
    """Pair each sample's latents with its caption's embedding."""
    by_caption = text.by_caption
    missing = [entry.name for entry in latents.entries if entry.caption not in by_caption]
    if missing:
        raise ConfigError(
            f"the caption of {missing[0]} has no text embedding: connect the same dataset to CacheLatents and CacheT5."
        )
    samples = tuple(
        TrainSample(
            name=entry.name,
            latents_path=entry.path,
            latents_key=entry.key,
            shape=entry.shape,
            text_path=by_caption[entry.caption].path,
            text_key=by_caption[entry.caption].key,
            caption=entry.caption,
            repeats=entry.repeats,
            held_out=entry.held_out,
            known_path=entry.known_path,
            known_key=entry.known_key,
            vision_path=entry.vision_path,
            vision_key=entry.vision_key,
        )
        for entry in latents.entries
    )
    empty = by_caption[""]
    return DataSpec(
        samples=samples,
        empty_text_path=empty.path,
        empty_text_key=empty.key,
        text_dim=text.dim,
        conditioning=latents.conditioning,
        fps=latents.fps,
    )


def job_to_json(job: Job) -> str:
    """The text of `job.json`."""
    return json.dumps(to_dict(job), indent=2) + "\n"


def newer_schema(where: object, schema: int) -> RunError:
    """The error for a job that a newer version wrote."""
    return RunError(f"{where} has schema {schema}, but this version reads up to {SCHEMA}: update ComfyUI-WanTrain.")


def job_from_json(text: str | bytes, path: Path | None = None) -> Job:
    """Read `job.json`; a newer schema, an unknown field, a wrong type and content that was changed are refused by name."""
    where = str(path) if path else "job"
    try:
        data: Any = parse_json(text.encode() if isinstance(text, str) else text, finite=False)
    except ValueError as error:
        raise RunError(f"{where} is not valid JSON ({error}): restore it from a backup or start a new run.") from error
    check_depth(data, where)
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise newer_schema(where, schema)
    try:
        data = unseal(data) if isinstance(data, dict) else data
    except ValueError as error:
        raise RunError(
            f"{where} is damaged or was changed ({error}): start the run from its graph or recipe, which write it anew; if the "
            "change is yours, delete the field sha256."
        ) from error
    return from_dict(Job, data, where)

"""The whole configuration of one training run, frozen: what `job.json` in a run folder holds."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError, RunError
from ..facts import EXPERTS, NUM_TIMESTEPS, Expert
from ..limits import check_amount, check_number, check_shape, check_texts
from ..names import check_name
from ..paths import shown
from ..safe_json import SEAL, as_table, parse_json, unseal
from ..serial import UnknownFieldError, check_depth, digest, from_dict, to_dict
from ..words import counted
from .dataset import Conditioning
from .groups import Groups
from .loop import LoopOptions
from .option import key_values, without_effect
from .plain import PLAIN, without_plain
from .precision import Precision, check_precision
from .samples import MOST_PROMPTS, SamplePrompt
from .stage import Stage
from .timesteps import TimestepOptions

SCHEMA = 2  # 1: "auto" in the memory options was what equalled the default
_FIRST_GROUPS = ("adapter", "timesteps", "optimizer", "schedule", "loop", "memory", "previews")  # of version 0.1.0
_KEY_VERSION = 1  # it says how keys are made, and stays when the schema of job.json moves on


def stage_window(stage: Stage, boundary: float) -> tuple[float, float]:
    """The sigmas that the model of this stage sees when it generates. A LoRA is labelled with them in thousandths."""
    if not 0 < round(boundary * NUM_TIMESTEPS) < NUM_TIMESTEPS:
        raise ConfigError(f"boundary is a sigma between 0 and 1 (0.875 for T2V-A14B), got {boundary}.")
    windows = {"high": (boundary, 1.0), "low": (0.0, boundary), "single": (0.0, 1.0), "both": (0.0, 1.0)}
    return windows[stage]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The frozen base."""

    path: str
    identity: str  # digest of the file's content
    precision: Precision = "auto"  # auto: bf16 on a GPU that has it, fp32 on the CPU
    recovery_adapter: str = ""  # precision "ara": its file
    recovery_identity: str = ""  # digest of that file's content
    label: str = ""  # for metadata: wan2.1-t2v-1.3b, wan2.1-t2v-14b, wan2.2-t2v-a14b

    def __post_init__(self) -> None:
        check_precision(self.precision)


@dataclass(frozen=True, kw_only=True)
class ExpertTurns:
    """How one LoRA is trained through both experts."""

    every: int  # steps after which the other expert has its turn
    boundary: float  # the sigma where the high noise expert hands over

    def __post_init__(self) -> None:
        check_number(self.every, "turns.every", 1, 1_000_000)
        check_number(self.boundary, "turns.boundary", 0, 1)
        stage_window("high", self.boundary)


@dataclass(frozen=True, kw_only=True)
class CaptionText:
    """A caption's embedding on disk."""

    path: str
    key: str


@dataclass(frozen=True, kw_only=True)
class PreviewPrompt:
    """A prompt of previews, and the embeddings on disk of what it says."""

    asked: SamplePrompt
    text: CaptionText
    negative: CaptionText

    def __post_init__(self) -> None:
        texts = (self.text, self.negative)
        check_texts("a preview", words=tuple(t.key for t in texts), paths=tuple(t.path for t in texts))


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
    loss_weight: float = 1.0  # what its loss counts beside that of the others
    caption_dropout: float | None = None  # the chance that it is trained with the empty caption; None: that of the run
    is_regularization: bool = False  # shown to keep what the model knows, not to teach
    more_texts: tuple[CaptionText, ...] = ()  # of further captions, one of all of which is drawn each time
    mask_path: str = ""  # key `mask`, [F, H, W] float32: what the error at each latent counts
    mask_key: str = ""
    control_path: str = ""  # key `latents`, of the control clip that goes with it, same shape
    control_key: str = ""
    reference_path: str = ""  # key `latents`, of the reference picture that goes with it, [C, 1, H, W]
    reference_key: str = ""
    class_texts: tuple[CaptionText, ...] = ()  # of each caption with the class word in place of the trigger; (): none

    def __post_init__(self) -> None:
        if len(self.class_texts) not in (0, 1 + len(self.more_texts)):
            raise ConfigError(
                f"{shown(self.name)} has {counted(1 + len(self.more_texts), 'caption')}, but {len(self.class_texts)} with the "
                "class word: give one for each, or none."
            )
        check_texts(
            "a sample",
            words=(
                *(self.name, self.latents_key, self.text_key, self.known_key, self.vision_key, self.mask_key),
                *(self.control_key, self.reference_key),
                *(text.key for text in (*self.more_texts, *self.class_texts)),
            ),
            paths=self.paths,
            captions=(self.caption,),
            has_halves=True,
        )
        if self.repeats < 1:
            raise ConfigError(f"{shown(self.name)} has {self.repeats} repeats: 1 is the least.")
        check_number(self.loss_weight, f"loss_weight of {shown(self.name)}", 0, 1_000_000)
        if self.caption_dropout is not None:
            check_number(self.caption_dropout, f"caption_dropout of {shown(self.name)}", 0, 1)
        check_shape(self.shape, shown(self.name))

    @property
    def later(self) -> dict[str, Any]:
        """What version 0.1.0 had not and the key of a run holds, where it differs from what it was then."""
        found = {
            "loss_weight": self.loss_weight if self.loss_weight != 1 else None,
            "caption_dropout": self.caption_dropout,
            "is_regularization": self.is_regularization or None,
            "more_texts": [text.key for text in self.more_texts] or None,
            "mask": self.mask_key or None,
            "control": self.control_key or None,
            "reference": self.reference_key or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def paths(self) -> tuple[str, ...]:
        """Of everything that was cached of it; "" for what it has not."""
        further = (text.path for text in (*self.more_texts, *self.class_texts))
        paired = (self.control_path, self.reference_path)
        return self.latents_path, self.text_path, self.known_path, self.vision_path, self.mask_path, *paired, *further


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """All samples, and the embedding of the empty caption."""

    samples: tuple[TrainSample, ...]
    empty_text_path: str
    empty_text_key: str
    text_dim: int  # width of the text embeddings
    conditioning: Conditioning = "none"  # the frames that the model is given
    fps: float = 16.0  # of the clips
    more_fps: tuple[float, ...] = ()  # of the other clips, where joined datasets have several rates
    prompts: tuple[PreviewPrompt, ...] = ()  # of previews; (): the caption of a sample. They decide no weights

    def __post_init__(self) -> None:
        if len(self.prompts) > MOST_PROMPTS:
            raise ConfigError(f"data has {len(self.prompts)} prompts of previews, more than {MOST_PROMPTS}.")
        check_texts("data", words=(self.empty_text_key,), paths=(self.empty_text_path,))
        check_number(self.text_dim, "data.text_dim", 1, 1_000_000)
        for fps in (self.fps, *self.more_fps):
            check_number(fps, "data.fps", 0.01, 1000)
        check_amount((sample.repeats for sample in self.samples), "the dataset")

    @property
    def gives_first_frame(self) -> bool:
        """Whether the first frame is given in place of the first latent frame, as TI2V-5B has it."""
        return self.conditioning != "none" and not any(sample.known_path for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained, on what."""

    schema: int = SCHEMA
    name: str
    stage: Stage
    model: ModelSpec
    data: DataSpec


@dataclass(frozen=True, kw_only=True)
class Job(Groups, Subject):
    """Everything that a run needs, and nothing that it finds out."""

    loras_folder: str = ""  # where its checkpoints are copied to, as LoRAs; "": nowhere
    # The model of the other stage: for previews through both, or (stage both) the low noise expert. None: not known.
    other_expert: ModelSpec | None = None
    preview_vae: str = ""  # file of the VAE for previews, where no node follows the run that decodes them with its own
    device: str = "auto"
    alternate_every: int = 0  # steps after which the device is handed to the other expert's run; 0: never
    turns: ExpertTurns | None = None  # stage both: how the one LoRA goes through the two experts
    trigger_word: str = ""  # for the LoRA's metadata; the captions hold it already
    start_identity: str = ""  # digest of the content of adapter.start_from
    merge_identity: str = ""  # and of adapter.merge_into_base
    crepa_identity: str = ""  # and of what crepa.encoder and its options make features with

    def __post_init__(self) -> None:
        self._check_fields()
        if not any(not sample.held_out for sample in self.data.samples):
            raise ConfigError("there is no sample to train on: every one is held out (see held_out of the dataset).")

    def _check_fields(self) -> None:
        """Whoever wrote them: names become names of files, numbers loops and sizes."""
        check_name(self.name)
        check_number(self.alternate_every, "alternate_every", 0, 1_000_000)
        if self.stage == "both" and (self.other_expert is None or self.turns is None):
            raise ConfigError(
                "a job of the stage both needs other_expert, the low noise expert, and turns: start it from its recipe or"
                " graph."
            )
        model = self.model
        check_texts(
            "the job",
            words=(
                *(model.identity, model.recovery_identity, model.label, self.device, self.trigger_word),
                *(self.start_identity, self.merge_identity, self.crepa_identity),
            ),
            paths=(
                *(model.path, model.recovery_adapter, self.preview_vae, self.loras_folder),
                *(() if self.other_expert is None else (self.other_expert.path,)),
                *(self.adapter.start_from, self.adapter.merge_into_base),
                *(self.previews.lora, self.previews.other_lora),
                *(self.crepa.encoder, self.crepa.vae),
            ),
            has_halves=True,
        )

    @property
    def key(self) -> str:
        """Digest of what decides the trained weights: the content of data and model, and the settings.

        Names, paths, device, memory options, previews and the rhythm of checkpoints are left out. So is the length where the
        schedule does not depend on it: a longer run then goes on from a shorter one. A later option is in it only where it
        differs from its first default, so that runs from before are still found.
        """
        loop = key_values(self.loop)
        if self.schedule.kind == "constant":
            loop["steps"] = 1
        samples = [[s.latents_key, s.text_key, s.repeats, s.held_out] for s in self.data.samples]
        settings = [key_values(group) for group in (self.adapter, self.timesteps, self.optimizer, self.schedule)]
        model = [self.model.identity, self.model.precision]
        parts = [_KEY_VERSION, self.stage, model, samples, self.data.empty_text_key, *settings, loop]
        later = {name: key_values(group) for name, group in self.groups() if name not in _FIRST_GROUPS}
        parts += [{name: values} for name, values in later.items() if values]
        if any(of_samples := [s.later for s in self.data.samples]):
            parts += [{"samples": of_samples}]
        if self.start_identity or self.merge_identity:
            parts += [{"start_from": self.start_identity, "merge_into_base": self.merge_identity}]
        if self.crepa_identity:
            parts += [{"crepa": self.crepa_identity}]
        if self.regularizers.output_preservation:
            parts += [{"class_texts": [[text.key for text in s.class_texts] for s in self.data.samples]}]
        if self.stage == "both" and self.other_expert is not None:
            parts += [{"both": [self.other_expert.identity, to_dict(self.turns)]}]
        if self.model.recovery_identity:
            parts += [self.model.recovery_identity]
        if self.data.conditioning != "none":
            parts += [self.data.conditioning, [[s.known_key, s.vision_key] for s in self.data.samples]]
        return digest(parts)

    def expert_at(self, step: int) -> Expert | None:
        """The expert that the update after `step` of them goes through; None where a run has one model."""
        return None if self.turns is None else EXPERTS[step // self.turns.every % len(EXPERTS)]

    def timesteps_of(self, expert: Expert | None) -> TimestepOptions:
        """The noise levels of an expert's steps; of the whole run for None."""
        if expert is None or self.turns is None:
            return self.timesteps
        low, high = stage_window(expert, self.turns.boundary)
        return replace(self.timesteps, sigma_min=low, sigma_max=high)

    def timesteps_at(self, index: int) -> TimestepOptions:
        """The noise levels that batch number `index` is drawn from."""
        return self.timesteps_of(self.expert_at(index // self.loop.gradient_accumulation))

    @property
    def training_samples(self) -> tuple[TrainSample, ...]:
        """Samples that are trained on."""
        return tuple(s for s in self.data.samples if not s.held_out)

    @property
    def held_out_samples(self) -> tuple[TrainSample, ...]:
        """Samples kept for the held-out loss."""
        return tuple(s for s in self.data.samples if s.held_out)

    def warnings(self) -> list[str]:
        """Settings that have no effect in this job, one sentence each."""
        found = [sentence for _, group in self.groups() for sentence in without_effect(group)]
        found += self.adapter.warnings()
        warmup = self.schedule.warmup_steps
        if warmup >= self.loop.steps:
            share = self.loop.steps / warmup
            found.append(
                f"warmup_steps ({warmup}) is not shorter than the run ({counted(self.loop.steps, 'step')}): the learning rate "
                f"rises to {share:.3g} of learning_rate, and lr_schedule has no effect."
            )
        falls, cycles = self.loop.steps - warmup, self.schedule.cycles
        if self.schedule.kind == "cosine_restarts" and cycles > 1 and cycles >= falls:
            found.append(
                f"lr_cycles ({cycles}) is not less than the steps after the warm-up ({max(falls, 0)}): no fall is longer than"
                " one step, so that the learning rate hardly falls; lower lr_cycles."
            )
        memory = self.memory
        is_plain = memory.stream_from in (None, PLAIN["stream_from"])
        if memory.plan == "manual" and not memory.streamed_blocks and not is_plain:
            found.append("stream_from has no effect: no block is streamed (see streamed_blocks).")
        if not self.held_out_samples and self.saving.keep_best:
            found.append("keep_best has no effect: no sample is held out (see held_out of the dataset).")
        if not self.held_out_samples and self.loop.validate_every != LoopOptions().validate_every:
            found.append("validate_every has no effect: no sample is held out (see held_out of the dataset).")
        return found


def job_to_json(job: Job) -> str:
    """The text of `job.json`."""
    return json.dumps(to_dict(job), indent=2) + "\n"


def newer_schema(where: object, schema: int) -> RunError:
    """The error for a job that a newer version wrote."""
    return RunError(f"{where} has schema {schema}, but this version reads up to {SCHEMA}: update ComfyUI-WanTrain.")


def job_from_json(text: str | bytes, path: Path | None = None) -> Job:
    """Read `job.json`; an older schema is brought up to date.

    A newer schema, an unknown field, a wrong type and content that was changed are refused by name.
    """
    where = str(path) if path else "job"
    try:
        data: Any = parse_json(text.encode() if isinstance(text, str) else text, finite=False)
    except ValueError as error:
        raise RunError(f"{where} can't be read, as {error}: restore it from a backup or start a new run.") from error
    check_depth(data, where)
    schema = as_table(data).get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise newer_schema(where, schema)
    is_sealed = SEAL in as_table(data)  # as a program wrote it
    try:
        data = _upgraded(unseal(cast(dict[str, Any], data))) if isinstance(data, dict) else data
    except ValueError as error:
        raise RunError(
            f"{where} is damaged or was changed ({error}): start the run from its graph or recipe, which write it anew; if the "
            "change is yours, delete the field sha256."
        ) from error
    try:
        return from_dict(Job, data, where)
    except UnknownFieldError as error:
        if not is_sealed:
            raise
        told = str(error).partition(";")[0]
        raise RunError(f"{told}: it was written by a newer version. Update ComfyUI-WanTrain.") from error


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a job of any earlier schema as this one has them; what is wrong about them is left for `from_dict`."""
    schema, memory = data.get("schema"), as_table(data.get("memory"))
    if not isinstance(schema, int) or isinstance(schema, bool) or schema >= SCHEMA:
        return data
    if memory and memory.get("plan", "auto") == "auto":
        data = {**data, "memory": without_plain(memory)}
    return {**data, "schema": SCHEMA}

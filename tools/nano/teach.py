"""Teaches the nano models a concept by a LoRA and measures it, with the core's own data, training and sampling:

python -m tools.nano teach --concept star --steps 150 --out FOLDER

FOLDER then holds the clips, the caches, the runs with their LoRAs, and a contact sheet.
"""

import argparse
import copy
import hashlib
import math
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core.adapters.formats import read_lora
from ...core.adapters.setup import AdapterOptions
from ...core.data.encode import cache_latents, cache_text
from ...core.data.latents import unit_range
from ...core.data.scan import scan_folder
from ...core.data.store import Store
from ...core.data.types import DatasetOptions
from ...core.errors import ConfigError, ModelFileError, RunError, WanTrainError
from ...core.flow.sigmas import TimestepOptions
from ...core.launch.process import Worker
from ...core.sample.sampler import SampleOptions, VelocityModel
from ...core.serial import from_dict, to_dict
from ...core.train.events import EventReader, EventWriter
from ...core.train.job import (
    BOUNDARY_T2V_A14B,
    DataSpec,
    Job,
    LoopOptions,
    MemoryOptions,
    ModelSpec,
    data_spec,
    stage_window,
)
from ...core.train.optimizers import OptimizerOptions
from ...core.train.prepare import resolve_device
from ...core.train.run import run_job
from ...core.train.run_folder import RunFolder
from ...core.train.schedule import ScheduleOptions
from ...core.wan.checkpoint import inspect
from . import world
from .concepts import CONCEPTS, Concept, prompts, write_dataset
from .evaluate import SAMPLING, Family, right, shares, test_scenes
from .family import STAGES, Files
from .judge import Verdict, judge
from .text import TextEncoder
from .vae import load_vae
from .world import Scene

KEPT = ("shape", "colour", "motion")  # what must be as asked for a prompt without the trigger to count as kept
LABEL = "wan2.2-t2v-nano"  # of the base, in the LoRAs' metadata
PROMPTS = 24
EXAM_SEED = 7000  # not the training's: runs with different seeds stay comparable
SHEET_PROMPTS, SHEET_FRAMES = 8, 5


# Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a concept is taught. `loop.seed` draws the clips too; the window of `timesteps` is the stage's."""

    clips: int = 12
    stages: tuple[Literal["high", "low"], ...] = STAGES
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    timesteps: TimestepOptions = field(default_factory=TimestepOptions)
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(learning_rate=1e-3))
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    loop: LoopOptions = field(default_factory=lambda: LoopOptions(steps=150, batch_size=4, seed=1))
    memory: MemoryOptions = field(default_factory=lambda: MemoryOptions(checkpointing=False))

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ConfigError(f"clips must be at least 1, got {self.clips}.")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ConfigError(f"stages names one or both of {', '.join(STAGES)}, each once; got {self.stages}.")
        window = (self.timesteps.sigma_min, self.timesteps.sigma_max)
        if window != (0.0, 1.0):
            raise ConfigError(f"timesteps has the window {window}, but each stage sets its own: leave it at 0 to 1.")


def changed(settings: Settings, name: str, text: str) -> Settings:
    """The settings with the field `name` ("adapter.rank") set to what `text` says; lists are written a+b.

    ConfigError if there is no such field, or the text is no value for it.
    """
    data = to_dict(settings)
    *groups, last = name.split(".")
    place, cls = data, Settings
    for group in groups:
        cls = _hint(cls, group, name)
        place = place[group] if is_dataclass(cls) else _unknown(name)
    place[last] = _value(_hint(cls, last, name), text, name)
    return from_dict(Settings, data, "settings")


def field_names(cls: type = Settings, prefix: str = "") -> list[str]:
    """The dotted names of all fields that hold a value."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        found += field_names(hint, f"{prefix}{name}.") if is_dataclass(hint) else [prefix + name]
    return found


def _hint(cls: Any, name: str, whole: str) -> Any:
    known = typing.get_type_hints(cls) if is_dataclass(cls) else {}
    return known[name] if name in known else _unknown(whole)


def _unknown(name: str) -> typing.NoReturn:
    raise ConfigError(f"there is no setting '{name}'; the settings are {', '.join(field_names())}.")


def _value(hint: Any, text: str, name: str) -> Any:
    """Text as a plain JSON value of the type; `from_dict` checks what it means."""
    if is_dataclass(hint):
        _unknown(name)
    if typing.get_origin(hint) is tuple:
        return text.split("+")
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError as error:
            raise ConfigError(f"{name} is '{text}'; it must be of type {hint.__name__}.") from error
    return text


# Data -------------------------------------------------------------------------------------------------------------


class NanoVideoEncoder:
    """The nano VAE as the caches take it: a `core.data.types.VideoEncoder`."""

    latent_format: Literal["wan2.1", "wan2.2"] = "wan2.1"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.identity = _file_digest(path)
        self._vae = load_vae(path).to(device)
        self._device = device

    def encode(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3], uint8 or float 0..1, to normalised latents [C, (F-1)//4+1, H/8, W/8] float32 on the CPU."""
        video = unit_range(frames).permute(3, 0, 1, 2)[None] * 2 - 1  # [1, 3, F, H, W]
        return self._vae.encode(video.to(self._device))[0].cpu()


class NanoTextEncoder:
    """The nano umT5 as the caches take it: a `core.data.types.TextEncoder`."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.identity = _file_digest(path)
        self._encoder = TextEncoder(path, device)
        self.dim = int(self._encoder.model.config.d_model)

    def encode(self, caption: str) -> tuple[Tensor, bool]:
        """Caption to [num_tokens, dim] float32 on the CPU; captions of the world are far shorter than the limit."""
        context, lengths = self._encoder.encode([caption])
        return context[0, : int(lengths[0])].cpu(), False


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise ModelFileError(
            f"{path} can't be read ({error.strerror}): give a folder that holds a whole nano family."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where concepts are taught: the base's files, a folder for everything made, the device."""

    files: Files
    folder: Path
    device: str = "cpu"
    runs: str = "runs"  # folder of the runs below `folder`

    def identities(self) -> list[str]:
        """Digests of the base's files."""
        experts = [self.files.dit(stage) for stage in STAGES]
        return [_file_digest(path) for path in (*experts, self.files.vae, self.files.text_encoder)]

    def data(self, concept: Concept, clips: int, seed: int) -> DataSpec:
        """The training set of a concept, written to disk and encoded; what is there already is used again."""
        folder = self.folder / "data" / f"{concept.name}-{clips}-clips-seed-{seed}"
        write_dataset(folder, concept, clips, seed)
        options = DatasetOptions(
            width=world.SIZE,
            height=world.SIZE,
            num_frames=world.NUM_FRAMES,
            fps=world.FPS,
            trigger_word=concept.trigger,
            bad_files="refuse",
            short_clips="refuse",
        )
        dataset = scan_folder(folder, options)
        store = Store(self.folder.absolute() / "cache")  # a worker has another working directory
        latents, _ = cache_latents(dataset, NanoVideoEncoder(self.files.vae, self.device), store)
        text, _ = cache_text(dataset.captions, NanoTextEncoder(self.files.text_encoder, self.device), store)
        return data_spec(latents, text)

    def jobs(self, concept: Concept, settings: Settings) -> dict[str, Job]:
        """One job for each stage that is trained."""
        data = self.data(concept, settings.clips, settings.loop.seed)
        return {stage: self._job(stage, concept, settings, data) for stage in settings.stages}

    def _job(self, stage: Literal["high", "low"], concept: Concept, settings: Settings, data: DataSpec) -> Job:
        info = inspect(self.files.dit(stage))
        low, high = stage_window(stage, BOUNDARY_T2V_A14B)
        return Job(
            name=concept.name,
            stage=stage,
            model=ModelSpec(
                path=str(info.path.absolute()),
                identity=info.identity,
                label=LABEL,
            ),
            data=data,
            adapter=settings.adapter,
            timesteps=replace(settings.timesteps, sigma_min=low, sigma_max=high),
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            loop=settings.loop,
            memory=settings.memory,
            device=self.device,
            trigger_word=concept.trigger,
        )

    def run_folder(self, job: Job) -> RunFolder:
        """The folder of a job, with the job in it."""
        folder = RunFolder(self.folder.absolute() / self.runs / f"{job.name}_{job.stage}_{job.key}")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_job(job)
        return folder


# Training ---------------------------------------------------------------------------------------------------------

Train = Callable[[RunFolder], Path]  # trains the job of a folder; the LoRA's path


def train_here(folder: RunFolder) -> Path:
    """Train in this process."""
    lock = folder.lock()
    if not lock.acquire():
        raise RunError(f"{folder.path} is being trained by another process: wait for it, or stop it.")
    try:
        device = resolve_device(folder.read_job().device)
        return run_job(folder, EventWriter(folder.events_path), device, lambda: False)
    finally:
        lock.release()


def train_in_worker(folder: RunFolder) -> Path:
    """Train in a worker process, as the node does."""
    worker = Worker(folder)
    try:
        code = worker.process.wait()
    finally:
        worker.kill()
    lora = folder.finished_lora(folder.read_job().loop.steps)
    if code or lora is None:
        raise RunError(f"the training in {folder.path} ended with the code {code}:\n{worker.log_tail()}")
    return lora


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What the training of one stage left behind."""

    lora: Path
    snapshots: dict[int, Path]  # the LoRA by the number of steps, from the checkpoints
    loss: float  # mean over the last tenth of the steps, at least 10
    seconds: float  # of training alone
    warnings: tuple[str, ...]  # settings without effect


def teach(concept: Concept, settings: Settings, workshop: Workshop, train: Train = train_here) -> dict[str, Lesson]:
    """Train a LoRA for each of the stages; interrupted runs go on where they were."""
    lessons = {}
    for stage, job in workshop.jobs(concept, settings).items():
        folder = workshop.run_folder(job)
        lora = train(folder)
        steps = {event["step"]: event for event in EventReader(folder.events_path).read() if event["event"] == "step"}
        steps = {step: event for step, event in steps.items() if step <= settings.loop.steps}
        last = sorted(steps)[-max(10, len(steps) // 10) :]
        lessons[stage] = Lesson(
            lora=lora,
            snapshots={step: path / "adapter.safetensors" for step, path in folder.checkpoints()},
            loss=sum(steps[step]["loss"] for step in last) / len(last),
            seconds=sum(event["seconds"] for event in steps.values()),
            warnings=tuple(job.warnings()),
        )
    return lessons


def with_lora(family: Family, high: Path | None, low: Path | None, strength: float = 1.0) -> Family:
    """The family with LoRAs added to the weights of its experts; `family` itself is left as it is."""
    experts = _with_delta(family.high, high, strength), _with_delta(family.low, low, strength)
    return replace(family, high=experts[0], low=experts[1])


@torch.no_grad()
def _with_delta(model: VelocityModel, lora: Path | None, strength: float) -> VelocityModel:
    if lora is None:
        return model
    assert isinstance(model, torch.nn.Module)
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    for path, module in read_lora(lora).modules.items():
        weight, delta = getattr(layers.get(path), "weight", None), module.delta()
        if weight is None or weight.shape != delta.shape:
            raise ModelFileError(
                f"{lora} changes {path} by a matrix of {list(delta.shape)}, which this model does not have: "
                "it was made for another model."
            )
        weight += strength * delta.to(weight)
    return model


# Measuring --------------------------------------------------------------------------------------------------------


def check_count(prompts: int) -> None:
    """Raises ConfigError for an exam without questions."""
    if prompts < 1:
        raise ConfigError(f"an exam needs at least 1 prompt, got {prompts}.")


@dataclass(frozen=True)
class Exam:
    """What a family is asked: the concept in new combinations, and scenes of the base's world without its word."""

    concept: Concept
    triggered: tuple[tuple[Scene, str], ...]
    plain: tuple[tuple[Scene, str], ...]
    seed: int

    @classmethod
    def of(cls, concept: Concept, count: int, seed: int = EXAM_SEED) -> "Exam":
        """`count` prompts of each kind."""
        check_count(count)
        return cls(concept, tuple(prompts(concept, count, seed)), tuple(islice(test_scenes(seed), count)), seed)


@dataclass(frozen=True)
class Answers:
    """What a family showed in an exam."""

    triggered: tuple[Verdict, ...]
    plain: tuple[Verdict, ...]
    clips: np.ndarray  # [N, F, H, W, 3] uint8, of the triggered prompts


def answer(family: Family, exam: Exam, sampling: SampleOptions = SAMPLING) -> Answers:
    """Generate and judge; a prompt gets the same noise from every family."""
    clips = show(family, exam.triggered, exam.seed, sampling)
    plain = show(family, exam.plain, exam.seed, sampling)
    return Answers(tuple(map(judge, clips)), tuple(map(judge, plain)), clips)


def show(family: Family, asked: Sequence[tuple[Scene, str]], seed: int, sampling: SampleOptions) -> np.ndarray:
    """A clip for each prompt, [N, F, H, W, 3] uint8."""
    return family.generate([prompt for _, prompt in asked], range(seed, seed + len(asked)), sampling)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares of prompts, 0 to 1; "on" and "off" are with the LoRA and without."""

    learnt: float  # with the trigger, on: the judge finds the concept
    leaked: float  # with the trigger, off
    bled: float  # without the trigger, on
    kept: float  # without the trigger, on: shape, colour and motion are all as asked
    kept_base: float  # the same, off
    as_asked: dict[str, float] = field(default_factory=dict)  # with the trigger, on: each attribute by itself

    @property
    def retention(self) -> float:
        """`kept` as a share of `kept_base`; NaN where the base gets nothing right."""
        return self.kept / self.kept_base if self.kept_base else math.nan

    def __str__(self) -> str:
        others = ", ".join(f"{name} {share:.0%}" for name, share in self.as_asked.items())
        return (
            f"with the trigger: concept {self.learnt:.0%} (without the LoRA {self.leaked:.0%}); {others}\n"
            f"without the trigger: as asked {self.kept:.0%} (without the LoRA {self.kept_base:.0%}, "
            f"so {self.retention:.0%} is kept), concept {self.bled:.0%}"
        )


def learnt(verdicts: Sequence[Verdict], concept: Concept) -> float:
    """Share of clips in which the concept is to be seen."""
    return sum(getattr(verdict, concept.attribute) == concept.value for verdict in verdicts) / len(verdicts)


def kept(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> float:
    """Share of clips in which shape, colour and motion are all as asked."""
    rows = [right(verdict, scene) for verdict, scene in zip(verdicts, scenes, strict=True)]
    return sum(all(row[name] for name in KEPT) for row in rows) / len(rows)


def grade(exam: Exam, *, off: Answers, on: Answers) -> Score:
    """The score of a LoRA from what the family showed without it and with it."""
    plain_scenes = [scene for scene, _ in exam.plain]
    return Score(
        learnt=learnt(on.triggered, exam.concept),
        leaked=learnt(off.triggered, exam.concept),
        bled=learnt(on.plain, exam.concept),
        kept=kept(on.plain, plain_scenes),
        kept_base=kept(off.plain, plain_scenes),
        as_asked=shares(on.triggered, [scene for scene, _ in exam.triggered]),
    )


def measure(base: Family, trained: Family, concept: Concept, count: int = PROMPTS, seed: int = EXAM_SEED) -> Score:
    """How well `trained` knows the concept, and what it still knows of what `base` knew; `count` prompts of a kind."""
    exam = Exam.of(concept, count, seed)
    return grade(exam, off=answer(base, exam), on=answer(trained, exam))


# The command ------------------------------------------------------------------------------------------------------


def contact_sheet(path: Path, exam: Exam, *, off: Answers, on: Answers) -> None:
    """Write a picture with a row for each of the first prompts: frames without the LoRA, then with it."""
    count = min(SHEET_PROMPTS, len(exam.triggered))
    frames = np.linspace(0, off.clips.shape[1] - 1, SHEET_FRAMES).round().astype(int)
    side, gap, text = off.clips.shape[2], 8, 30
    half = SHEET_FRAMES * side
    sheet = Image.new("RGB", (2 * half + 3 * gap, count * (side + text) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    attribute = exam.concept.attribute
    for row in range(count):
        top = gap + row * (side + text)
        for column, answers in enumerate((off, on)):
            left = gap + column * (half + gap)
            strip = np.concatenate(list(answers.clips[row][frames]), axis=1)  # [H, frames * W, 3]
            sheet.paste(Image.fromarray(strip), (left, top + text - 2))
            seen = f"{('off', 'on')[column]}: {getattr(answers.triggered[row], attribute)}"
            draw.text((left, top + 12), seen, fill="black")
        draw.text((gap, top), textwrap.shorten(exam.triggered[row][1], 2 * half // 7), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What `teach` and `bench` both take."""
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--family", type=Path, default=Files().root, help="folder of the nano family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=Settings().loop.steps)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="prompts with the trigger, and as many without")
    parser.add_argument("--worker", action="store_true", help="train in a process of its own, as the node does")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"a setting of the training, for example adapter.rank=4; one of: {', '.join(field_names())}",
    )


def common_settings(options: argparse.Namespace) -> Settings:
    """The settings that --steps and --set ask for."""
    settings = changed(Settings(), "loop.steps", str(options.steps))
    for assignment in options.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' must have the form FIELD=VALUE, for example adapter.rank=4.")
        settings = changed(settings, name, text)
    return settings


def workshop_of(options: argparse.Namespace) -> Workshop:
    """Where --family, --out and --device say."""
    return Workshop(files=Files(options.family), folder=options.out, device=options.device)


def trainer_of(options: argparse.Namespace) -> Train:
    """How --worker says."""
    return train_in_worker if options.worker else train_here


def run_command(command: Callable[[], None]) -> None:
    """Run a command; what the user can mend ends it with one sentence."""
    try:
        command()
    except WanTrainError as error:
        sys.exit(str(error))


def main(arguments: list[str]) -> None:
    """Teach, measure, print the score, draw the contact sheet."""
    parser = argparse.ArgumentParser(prog="tools.nano teach", description=__doc__)
    parser.add_argument("--concept", choices=CONCEPTS, required=True)
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRAs when measured")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    run_command(lambda: _teach(options))


def _teach(options: argparse.Namespace) -> None:
    concept = CONCEPTS[options.concept]
    settings, workshop = common_settings(options), workshop_of(options)
    exam = Exam.of(concept, options.prompts)
    lessons = teach(concept, settings, workshop, trainer_of(options))
    for stage, lesson in lessons.items():
        for warning in lesson.warnings:
            print(f"{stage}: {warning}")
        print(f"{stage}: loss {lesson.loss:.4f}, {lesson.seconds:.0f} s of training, {lesson.lora}", flush=True)
    base = Family.load(workshop.files, options.device)
    loras = {stage: lesson.lora for stage, lesson in lessons.items()}
    trained = with_lora(base, loras.get("high"), loras.get("low"), options.strength)
    off, on = answer(base, exam), answer(trained, exam)
    sheet = options.out / f"{concept.name}.png"
    contact_sheet(sheet, exam, off=off, on=on)
    print(
        f"{concept.name} as '{concept.trigger}' after {settings.loop.steps} steps, {len(exam.plain)} prompts of a kind"
    )
    print(grade(exam, off=off, on=on))
    print(sheet)

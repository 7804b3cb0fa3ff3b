"""Lessons: a concept taught to the experts by LoRAs, in this process or in a worker, and the LoRAs on the experts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ...core.adapters.apply import attach
from ...core.adapters.other_files import read_adapter
from ...core.adapters.transfer import transfer_report
from ...core.devices import resolve_device
from ...core.errors import RunError
from ...core.launch.process import Worker
from ...core.sample.sampler import VelocityModel
from ...core.train.events import EventReader, EventWriter
from ...core.train.run import run_job
from ...core.train.run_folder import RunFolder
from .concepts import Concept
from .evaluate import Family
from .settings import Settings
from .workshop import Workshop

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
    """The family with LoRAs on its experts; `family` itself is left as it is.

    ConfigError if a LoRA was made for a model of another size.
    """
    experts = [_with_lora(model, lora, strength) for model, lora in ((family.high, high), (family.low, low))]
    return replace(family, high=experts[0], low=experts[1])


def _with_lora(model: VelocityModel, path: Path | None, strength: float) -> VelocityModel:
    if path is None:
        return model
    assert isinstance(model, nn.Module)
    model, lora = copy.deepcopy(model), read_adapter(path)
    transfer_report(lora, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    attach(model, lora.modules, strength)
    return model

"""One run from its folder: prepare, resume, train, save. What the worker process executes."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..adapters.metadata import LoraDescription, lora_metadata
from ..adapters.setup import up_parameters, write_adapter
from ..adapters.start_from import check_file, start_from_file
from ..optimizers import OPTIMIZERS
from ..parallel.world import ALONE, World
from ..plan.host import process_age
from ..plan.overhead import Others
from ..settings.job import Job
from .average import Averages, averages_of
from .batches import BatchSchedule, Prefetcher, load_drawn
from .checks import check_model_file
from .events import EventReader, EventWriter
from .label import beside_name, describe_lora, lora_name
from .loop import StepReport, Trainer
from .optimizers import build_optimizer
from .prepare import Prepared
from .previews import Preview
from .requests import PREVIEW_FILE, SAVE_FILE
from .resume import SaveCheckpoint, SaveWhenDiaryFails, is_due, resume
from .run_folder import RunFolder
from .run_plan import RunPlan
from .space import check_space
from .start import check_start
from .state import EMA, stateful_parts
from .validation import validation_loss

log = logging.getLogger(__name__)

# The gradient of a mean over a clip's million latents is near 1e-6 for each, of which fp16 keeps no digits.
FP16_LOSS_SCALE = 2.0**16


class RunStoppedError(Exception):
    """Raised between two steps, after a checkpoint was written."""


def run_job(
    folder: RunFolder,
    events: EventWriter,
    device: torch.device,
    should_stop: Callable[[], bool],
    *,
    others: Others | None = None,
    world: World = ALONE,
) -> Path:
    """Train the job of `folder` to its end, from the newest checkpoint if there is one; the LoRA's path.

    `others`: what else is in the device's memory, where that was read before this process used it. `world`: the ranks that
    train it together, each of which calls this with its own device.

    Raises RunStoppedError when `should_stop` says so between two steps: the checkpoint is then on disk. ConfigError
    before the model is loaded if the job cannot be trained here.
    """
    log.info("The process has started after %.1f s.", process_age() or math.nan)
    job = folder.read_job()
    info = check_model_file(job.model)
    check_start(job, info, folder.path)
    folder.checkpoint_store.sweep()
    for sentence in check_space(job, info.config, folder.path):
        events.write("warning", message=sentence)
    events.write("status", message=f"loading {Path(job.model.path).name}")
    plan = RunPlan(job, info, device, events=events, scratch=folder.scratch_path, others=others, world=world)
    with closing(plan):
        return _train(folder, job, events, plan, should_stop, world)


def _train(
    folder: RunFolder, job: Job, events: EventWriter, plan: RunPlan, should_stop: Callable[[], bool], world: World
) -> Path:
    prepared = plan.load()
    device = prepared.device
    optimizer = build_optimizer(prepared.parameters, job.optimizer, ups=up_parameters(prepared.model))
    recovery = plan.recovery(optimizer)
    _begin_from_file(folder, job, prepared, events)
    averages = averages_of(job, prepared.model, prepared.parameters, optimizer)
    others = {} if averages.ema is None else {EMA: averages.ema}
    parts = stateful_parts(prepared.model, optimizer, OPTIMIZERS.get(job.optimizer.name), **others)
    step = resume(folder, events, parts, steps=job.loop.steps, training=job.key)
    if step == 0:  # also where a run's checkpoints were all damaged
        check_file(job.adapter.start_from, job.start_identity, "start_from")
    schedule = BatchSchedule.of(job.data, job.loop, with_class=job.regularizers.output_preservation > 0)
    first = step * job.loop.gradient_accumulation
    batches = Prefetcher(partial(load_drawn, job, schedule), first, device=device, ahead=2)
    describing = partial(checkpoint_metadata, folder, job)
    checkpoint = SaveCheckpoint(folder, events, parts, describe=describing, average=averages.of_checkpoints)
    preview = Preview(folder, events, should_stop, make_room=plan.make_room)
    callbacks = [
        LogStep(events, device),
        Validate(events),
        checkpoint,
        SaveWhenDiaryFails(events, checkpoint),
        *plan.callbacks(),
        preview,
        WhenAsked(folder.path / SAVE_FILE, checkpoint.save),
        WhenAsked(folder.path / PREVIEW_FILE, preview.make),
        StopWhen(should_stop, checkpoint),
    ]
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=optimizer,
        batches=batches,
        callbacks=callbacks,
        loss_scale=FP16_LOSS_SCALE if prepared.dtype == torch.float16 else 1.0,
        world=world,
    )
    trainer.step = step
    trainer.shown = averages.shown
    trainer.after_update += [] if averages.ema is None else [averages.ema]
    trainer.attempt = recovery.attempt
    prepared.model.train()
    try:
        if should_stop():
            raise RunStoppedError
        if step == 0 and job.held_out_samples:
            write_validation(trainer, events)
        trainer.train()
    finally:
        batches.close()
    return save_lora(folder, job, prepared, averages, step=trainer.step)


def _begin_from_file(folder: RunFolder, job: Job, prepared: Prepared, events: EventWriter) -> None:
    """Fill the adapter from the file that the job names, before anything is averaged; a checkpoint may come over it."""
    path, has_checkpoint = job.adapter.start_from, bool(folder.checkpoints())
    if not path or (has_checkpoint and not Path(path).is_file()):
        return
    said = start_from_file(prepared.model, job.adapter)
    for sentence in () if has_checkpoint else said:
        events.write("warning", message=sentence)


class LogStep:
    """One event a step: loss, learning rate, seconds, memory."""

    def __init__(self, events: EventWriter, device: torch.device):
        self._events = events
        self._device = device

    def needs_weights(self, _trainer: Trainer) -> bool:
        return False

    def __call__(self, _trainer: Trainer, report: StepReport) -> None:
        fields = {key: round(value, 6) for key, value in self._memory().items()}
        self._events.write(
            "step",
            step=report.step,
            loss=report.loss,
            lr=report.learning_rate,
            grad_norm=report.grad_norm,
            sigma=report.sigma,
            seconds=round(report.seconds, 4),
            tokens=report.tokens,
            **({"terms": dict(report.terms)} if report.terms else {}),
            **fields,
        )

    def _memory(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        return {
            "allocated_gib": torch.cuda.max_memory_allocated(self._device) / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved(self._device) / 2**30,
        }


class Validate:
    """Held-out loss every `validate_every` steps and at the end."""

    def __init__(self, events: EventWriter):
        self._events = events

    def needs_weights(self, trainer: Trainer) -> bool:
        return bool(trainer.job.held_out_samples) and is_due(trainer.step, trainer, trainer.job.loop.validate_every)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if trainer.job.held_out_samples and is_due(report.step, trainer, trainer.job.loop.validate_every):
            write_validation(trainer, self._events)


class StopWhen:
    """Ends the run between two steps when asked to, with a checkpoint."""

    def __init__(self, should_stop: Callable[[], bool], checkpoint: SaveCheckpoint):
        self._should_stop = should_stop
        self._checkpoint = checkpoint

    def needs_weights(self, trainer: Trainer) -> bool:
        return trainer.step < trainer.job.loop.steps and self._should_stop()

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == trainer.step and self.needs_weights(trainer):
            self._checkpoint.save(trainer)
            raise RunStoppedError


class WhenAsked:
    """Does `act` once for each request, with the weights of the step after which it was seen."""

    def __init__(self, path: Path, act: Callable[[Trainer], None]):
        """`path`: of the request's file."""
        self._path, self._act = path, act

    def needs_weights(self, _trainer: Trainer) -> bool:
        return self._path.exists()

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step != trainer.step or not self._path.exists():
            return
        self._path.unlink(missing_ok=True)
        self._act(trainer)


def write_validation(trainer: Trainer, events: EventWriter) -> None:
    """Compute the held-out loss and write it to the diary."""
    start = time.perf_counter()
    with trainer.shown():
        loss, by_sigma = trainer.attempt(partial(validation_loss, trainer), trainer.step)
    seconds = round(time.perf_counter() - start, 4)
    if not math.isfinite(loss):
        events.write(
            "warning", message=f"the validation loss at step {trainer.step} is not finite: lower learning_rate."
        )
        return
    events.write("validation", step=trainer.step, loss=loss, by_sigma=by_sigma, seconds=seconds)


def save_lora(folder: RunFolder, job: Job, prepared: Prepared, averages: Averages, *, step: int) -> Path:
    """Write the final LoRA into the run folder, with its metadata, and mark the run as finished.

    With an average (EMA), the weights that it does not hold are written beside it.
    """
    described = describe(folder, job, step)
    if averages.beside is not None:
        which, show = averages.beside
        other = replace(described, name=beside_name(job), weights=which)
        with show():
            path = folder.path / f"{beside_name(job)}.safetensors"
            write_adapter(path, prepared.model, metadata=lora_metadata(other))
    path = folder.path / f"{lora_name(job)}.safetensors"
    with averages.saved():
        write_adapter(path, prepared.model, metadata=lora_metadata(described))
    folder.write_result(step=step, lora=path)
    return path


def checkpoint_metadata(folder: RunFolder, job: Job, step: int) -> dict[str, str]:
    """Of the adapter in a checkpoint, which is a LoRA like the one at the end."""
    return lora_metadata(describe(folder, job, step))


def describe(folder: RunFolder, job: Job, step: int) -> LoraDescription:
    """What the LoRA file says about its making."""
    events = EventReader(folder.events_path).stream()
    started = next((event["time"] for event in events if event["event"] == "start"), None)
    return describe_lora(job, step=step, started_at=started, finished_at=time.time(), **folder.read_workflow())

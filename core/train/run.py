"""One run from its folder: prepare, resume, train, save. What the worker process executes."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from ..adapters.formats import parse_modules, write_lora
from ..adapters.metadata import LoraDescription, TrainingFacts, lora_metadata
from ..adapters.setup import adapter_state, load_adapter
from ..flow.objective import NUM_TIMESTEPS
from ..memory.overhead import Others
from ..serial import to_dict
from .batches import BatchSchedule, Prefetcher, load_drawn
from .events import EventReader, EventWriter
from .job import Job
from .loop import StepReport, Trainer
from .optimizers import build_optimizer, load_optimizer
from .prepare import Prepared
from .previews import Preview
from .run_folder import RunFolder
from .run_plan import RunPlan
from .validation import validation_loss

# The gradient of a mean over a clip's million latents is near 1e-6 for each, of which fp16 keeps no digits.
FP16_LOSS_SCALE = 2.0**16

# What reading a damaged checkpoint raises. A disk that can't be read at all (OSError) is no reason to drop one.
DAMAGED = (SafetensorError, RuntimeError, ValueError, EOFError, UnpicklingError)


class RunStoppedError(Exception):
    """Raised between two steps, after a checkpoint was written."""


def run_job(
    folder: RunFolder,
    events: EventWriter,
    device: torch.device,
    should_stop: Callable[[], bool],
    *,
    others: Others | None = None,
) -> Path:
    """Train the job of `folder` to its end, from the newest checkpoint if there is one; the LoRA's path.

    `others`: what else is in the device's memory, where that was read before this process used it.

    Raises RunStoppedError when `should_stop` says so between two steps: the checkpoint is then on disk. ConfigError
    before the model is loaded if the job cannot be trained here.
    """
    job = folder.read_job()
    folder.sweep()
    events.write("status", message=f"loading {Path(job.model.path).name}")
    scratch = folder.path.parent.parent / "cache"  # beside the runs
    with closing(RunPlan(job, device, events=events, scratch=scratch, others=others)) as plan:
        return _train(folder, job, events, plan, should_stop)


def _train(folder: RunFolder, job: Job, events: EventWriter, plan: RunPlan, should_stop: Callable[[], bool]) -> Path:
    prepared = plan.load()
    device = prepared.device
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    recovery = plan.recovery(optimizer)
    step = _resume(folder, events, prepared, optimizer, job.loop.steps)
    schedule = BatchSchedule.of(job.data, job.loop)
    first = step * job.loop.gradient_accumulation
    batches = Prefetcher(partial(load_drawn, job, schedule), first, device=device, ahead=2)
    checkpoint = SaveCheckpoint(folder, events, prepared, optimizer)
    callbacks = [
        LogStep(events, device),
        Validate(events),
        checkpoint,
        *plan.callbacks(),
        Preview(folder, events, should_stop, make_room=plan.make_room),
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
    )
    trainer.step = step
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
    return save_lora(folder, job, prepared, step=trainer.step)


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
        return bool(trainer.job.held_out_samples) and _is_due(trainer.step, trainer, trainer.job.loop.validate_every)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if trainer.job.held_out_samples and _is_due(report.step, trainer, trainer.job.loop.validate_every):
            write_validation(trainer, self._events)


class SaveCheckpoint:
    """A checkpoint every `checkpoint_every` steps and at the end."""

    def __init__(self, folder: RunFolder, events: EventWriter, prepared: Prepared, optimizer: torch.optim.Optimizer):
        self._folder, self._events, self._prepared, self._optimizer = folder, events, prepared, optimizer

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the trainer's step now."""
        state = {"step": trainer.step, "optimizer": self._optimizer.state_dict()}
        self._folder.save_checkpoint(
            trainer.step, adapter_state(self._prepared.model), state, keep_last=trainer.job.loop.keep_last
        )
        self._events.write("checkpoint", step=trainer.step)

    def needs_weights(self, trainer: Trainer) -> bool:
        return _is_due(trainer.step, trainer, trainer.job.loop.checkpoint_every)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if _is_due(report.step, trainer, trainer.job.loop.checkpoint_every):
            self.save(trainer)


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


def _is_due(step: int, trainer: Trainer, every: int) -> bool:
    return step % every == 0 or step == trainer.job.loop.steps


def write_validation(trainer: Trainer, events: EventWriter) -> None:
    """Compute the held-out loss and write it to the diary."""
    start = time.perf_counter()
    loss, by_sigma = trainer.attempt(partial(validation_loss, trainer), trainer.step)
    seconds = round(time.perf_counter() - start, 4)
    events.write("validation", step=trainer.step, loss=loss, by_sigma=by_sigma, seconds=seconds)


def _resume(
    folder: RunFolder, events: EventWriter, prepared: Prepared, optimizer: torch.optim.Optimizer, num_steps: int
) -> int:
    for step, path in reversed(folder.checkpoints()):
        if step > num_steps:
            continue
        try:
            tensors, state = folder.load_checkpoint(path)
        except DAMAGED as error:
            events.write("warning", message=f"the checkpoint of step {step} is damaged and was passed over ({error}).")
            shutil.rmtree(path, ignore_errors=True)  # else it would stand in the place of a good one of this step
            continue
        load_adapter(prepared.model, tensors)
        load_optimizer(optimizer, state["optimizer"])
        events.write("start", step=step)
        return step
    events.write("start", step=0)
    return 0


def save_lora(folder: RunFolder, job: Job, prepared: Prepared, *, step: int) -> Path:
    """Write the final LoRA into the run folder, with its metadata, and mark the run as finished."""
    suffix = {"high": "_high_noise", "low": "_low_noise", "single": ""}[job.stage]
    path = folder.path / f"{job.name}{suffix}.safetensors"
    modules, _ = parse_modules(adapter_state(prepared.model))
    write_lora(path, modules, metadata=lora_metadata(describe(folder, job, path.stem, step)), dtype=torch.float32)
    folder.write_result(step=step, lora=path)
    return path


def describe(folder: RunFolder, job: Job, name: str, step: int) -> LoraDescription:
    """What the LoRA file says about its making."""
    started = [event["time"] for event in EventReader(folder.events_path).read() if event["event"] == "start"]
    captions = Counter({sample.caption: sample.repeats for sample in job.training_samples})
    largest = max(job.training_samples, key=lambda sample: sample.shape[2] * sample.shape[3])
    stride = 16 if largest.shape[0] == 48 else 8
    window = (job.timesteps.sigma_min, job.timesteps.sigma_max)
    return LoraDescription(
        name=name,
        base_model=job.model.label,
        rank=job.adapter.rank,
        alpha=job.adapter.alpha,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        trigger_phrase=job.trigger_word,
        resolution=(largest.shape[3] * stride, largest.shape[2] * stride),
        timestep_range=(round(window[0] * NUM_TIMESTEPS), round(window[1] * NUM_TIMESTEPS)),
        training=TrainingFacts(
            learning_rate=job.optimizer.learning_rate,
            optimizer=job.optimizer.name,
            lr_scheduler=job.schedule.kind,
            steps=step,
            max_steps=job.loop.steps,
            seed=job.loop.seed,
            batch_size=job.loop.batch_size,
            gradient_accumulation=job.loop.gradient_accumulation,
            num_samples=len(job.training_samples),
            dropout=job.adapter.dropout,
            tag_frequency=dict(captions),
            started_at=started[0] if started else None,
            finished_at=time.time(),
        ),
        job=to_dict(job),
        **folder.read_workflow(),
    )

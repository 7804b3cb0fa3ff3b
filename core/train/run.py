"""One run from its folder: prepare, resume, train, save. What the worker process executes."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..adapters.metadata import LoraDescription, lora_metadata
from ..adapters.setup import up_parameters, write_adapter
from ..adapters.start_from import check_file, start_from_file
from ..errors import DatasetError
from ..gpu_failure import telling_failures
from ..memory.deterministic import same_bits
from ..optimizers import OPTIMIZERS
from ..parallel.agree import Agreement
from ..parallel.reduce import copy_from_first
from ..parallel.world import ALONE, World
from ..plan.host import process_age
from ..plan.overhead import OtherPrograms
from ..plan.step_memory import MemoryPeaks
from ..settings.job import Job
from .adaptive import adaptive_weight
from .alternate import RunStoppedError, TakeTurns, Turns
from .average import Averages, averages_of
from .batches import Prefetcher, load_drawn
from .checks import check_model_file
from .clock import Clock
from .crepa import make_features
from .divergence import WatchDivergence
from .events import EventReader, EventWriter
from .find_run import progress_of
from .history import read_long_history
from .label import beside_name, describe_lora, lora_name
from .loop import Callback, StepReport, Trainer
from .optimizers import build_optimizer
from .prepare import Prepared, timed
from .previews import Preview
from .requests import PREVIEW_FILE, REQUEST_FILES, SAVE_FILE, Requests
from .resume import SaveCheckpoint, SaveWhenDiaryFails, is_due, resume
from .run_folder import RunFolder
from .run_plan import RunPlan
from .space import check_space
from .start import check_start
from .state import ADAPTIVE, CREPA, EMA, Stateful, stateful_parts
from .team import Team
from .together import check_ranks, schedule_of, team_of, what_is_asked
from .validation import validation_loss

log = logging.getLogger(__name__)

# The gradient of a mean over a clip's million latents is near 1e-6 for each, of which fp16 keeps no digits.
FP16_LOSS_SCALE = 2.0**16
MAX_SAMPLES_TOLD = 1000  # of held-out samples, each of which has its loss in the diary
_UNKNOWN_OPTIMIZER = (
    "deterministic: PyTorch's operators give the same bits each time; if {} has kernels of its own, it is not known whether "
    "they do."
)
_NO_TURNS = "alternate_every has no effect on a run over several GPUs: the experts are trained one after the other."


def run_job(
    folder: RunFolder,
    events: EventWriter,
    device: torch.device,
    should_stop: Callable[[], bool],
    *,
    others: OtherPrograms | None = None,
    world: World = ALONE,
    turns: Turns | None = None,
) -> Path:
    """Train the job of `folder` to its end, from the newest checkpoint if there is one; the LoRA's path.

    `others`: what else is in the device's memory, where that was read before this process used it. `world`: the ranks that
    train it together, each of which calls this with its own device. `turns`: the run's turn on its device, where it may hand
    it over to another run.

    Raises RunStoppedError when `should_stop` says so between two steps: the checkpoint is then on disk. ConfigError
    before the model is loaded if the job cannot be trained here. GpuFailedError when the device fails.
    """
    log.info("The process has started after %.1f s.", process_age() or math.nan)
    job = folder.read_job()
    rank = world.rank if world.size > 1 else None
    with telling_failures(device, lambda: progress_of(folder), rank=rank), same_bits(job.memory.deterministic):
        return _run_job(folder, job, events, device, should_stop, others=others, world=world, turns=turns)


def _run_job(
    folder: RunFolder,
    job: Job,
    events: EventWriter,
    device: torch.device,
    should_stop: Callable[[], bool],
    *,
    others: OtherPrograms | None,
    world: World,
    turns: Turns | None,
) -> Path:
    info = check_model_file(job.model)
    check_start(job, info, folder.path)
    if world.is_first:
        folder.checkpoint_store.sweep()
    for sentence in check_space(job, info.config, folder.path):
        events.write("warning", message=sentence)
    events.write("status", message=f"loading {Path(job.model.path).name}")
    make_features(job, device, events, should_stop, world)
    if job.alternate_every and turns is None and world.is_first:
        events.write("warning", message=_NO_TURNS)
    beside = None if turns is None or not job.alternate_every else turns
    scratch, is_there = folder.scratch_path, None if beside is None else beside.has_waited
    if job.memory.deterministic and job.optimizer.path and world.is_first:
        events.write("warning", message=_UNKNOWN_OPTIMIZER.format(job.optimizer.path))
    plan = RunPlan(
        job, info, device, events=events, scratch=scratch, others=others, world=world, other_is_there=is_there
    )
    check_ranks(job, world, is_sharded=plan.is_sharded)
    with closing(plan):
        lora = _train(folder, job, events, plan, should_stop, world, beside)
    world.wait_for_all()
    return lora


def _train(
    folder: RunFolder,
    job: Job,
    events: EventWriter,
    plan: RunPlan,
    should_stop: Callable[[], bool],
    world: World,
    turns: Turns | None,
) -> Path:
    prepared = plan.load()
    optimizer = build_optimizer(prepared.parameters, job.optimizer, ups=up_parameters(prepared.model))
    recovery = plan.recovery(optimizer)
    _begin_from_file(folder, job, prepared, events)
    copy_from_first(prepared.parameters, world)
    adaptive = adaptive_weight(job, prepared.parameters[0].device)
    averages = averages_of(job, prepared.model, prepared.of_adapter, optimizer)
    others: dict[str, Stateful] = {} if averages.ema is None else {EMA: averages.ema}
    others |= {} if prepared.crepa is None else {CREPA: prepared.crepa}
    others |= {} if adaptive is None else {ADAPTIVE: adaptive}
    parts = stateful_parts(prepared.model, optimizer, OPTIMIZERS.get(job.optimizer.name), **others)
    step = resume(folder, events, parts, steps=job.loop.steps, training=job.key, world=world)
    if step == 0:  # also where a run's checkpoints were all damaged
        check_file(job.adapter.start_from, job.start_identity, "start_from")
    requests = {name: Requests(folder.path, name) for name in REQUEST_FILES}
    asked = what_is_asked(requests, should_stop, world)
    checkpoint = SaveCheckpoint(
        folder, events, parts, describe=partial(checkpoint_metadata, folder, job), average=averages.of_checkpoints
    )
    clock = Clock()
    preview = Preview(
        folder,
        events,
        should_stop,
        is_stopping=asked.asker("stop"),
        make_room=plan.make_room,
        is_shared=plan.talks_within,
        took=clock.previewed,
    )
    team = team_of(job, plan, prepared.parameters, asked.look, world)
    validate = Validate(events, checkpoint, equal_counts=plan.is_sharded, took=clock.validated)
    told: list[Callback] = [LogStep(events, plan.device, world, plan.step_memory.peaks)]
    told += [WatchDivergence(events, steps_before(folder, step) if world.is_first else ())]
    wishes = [
        preview,
        WhenAsked(requests[SAVE_FILE], partial(checkpoint.save, is_last=False), asked.asker(SAVE_FILE)),
        WhenAsked(requests[PREVIEW_FILE], preview.make, asked.asker(PREVIEW_FILE)),
    ]
    callbacks = [clock, *told, *_callbacks(events, plan, checkpoint, validate, wishes, asked)]
    if turns is not None:
        saves = requests[SAVE_FILE]
        callbacks += [TakeTurns(turns, plan, events, checkpoint, should_stop=should_stop, saves=saves)]
    batches = _batches(job, prepared.device, step, team)
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=optimizer,
        batches=batches,
        callbacks=callbacks,
        loss_scale=FP16_LOSS_SCALE if prepared.dtype == torch.float16 else 1.0,
        team=team,
    )
    trainer.step, trainer.joined = step, plan.joined
    trainer.forwards.alignment = prepared.crepa
    trainer.shown, trainer.adaptive = averages.shown, adaptive
    trainer.after_update += [] if averages.ema is None else [averages.ema]
    trainer.attempt = recovery.attempt
    trainer.use_expert, trainer.aside = plan.use_expert, plan.step_memory.aside
    prepared.model.train()
    try:
        asked.look()
        if asked.answer("stop"):
            raise RunStoppedError
        if step == 0 and job.held_out_samples:
            validate.measure(trainer)
        preview.before_first_step(trainer)
        trainer.train()
        batches.close()
        lora = save_lora(
            folder, job, prepared, averages, step=trainer.step, world=world, before_result=checkpoint.finish
        )
    finally:
        batches.close()
        checkpoint.finish()
    plan.ended(clock)
    return lora


def _callbacks(
    events: EventWriter,
    plan: RunPlan,
    checkpoint: SaveCheckpoint,
    validate: "Validate",
    wishes: Sequence[Callback],
    asked: Agreement,
) -> list[Callback]:
    """What is done after a step that was told, in order. `wishes`: previews, and what is asked for."""
    return [
        validate,
        checkpoint,
        SaveWhenDiaryFails(events, checkpoint),
        *plan.callbacks(),
        *wishes,
        StopWhen(asked.asker("stop"), checkpoint),
    ]


def steps_before(folder: RunFolder, step: int) -> Iterator[tuple[int, float, float | None]]:
    """Step, loss and gradient norm of what the diary knows up to `step`; nothing is read where a run begins."""
    if not step:
        return
    history = read_long_history(folder.events_path)
    for done, loss in history.losses.items():
        if done <= step:
            yield done, loss, history.gradient_norms.get(done)


def _batches(job: Job, device: torch.device, step: int, team: Team | None) -> Prefetcher:
    """Those that this rank trains, from the update that follows `step` updates on."""
    schedule = schedule_of(job)
    if team is None:
        first, following = step * job.loop.gradient_accumulation, count
    else:
        first, following = team.deal(step).indices[0], team.following
    return Prefetcher(partial(load_drawn, job, schedule), first, device=device, ahead=2, following=following)


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

    def __init__(
        self,
        events: EventWriter,
        device: torch.device,
        world: World = ALONE,
        peaks: Callable[[], MemoryPeaks | None] = lambda: None,
    ):
        """`peaks`: of the device's memory in the steps so far."""
        self._events, self._world, self._peaks = events, world, peaks
        names = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._names = world.tell(names)  # of all GPUs

    def needs_weights(self, _trainer: Trainer) -> bool:
        return False

    def __call__(self, _trainer: Trainer, report: StepReport) -> None:
        memory = self._memory()
        fields: dict[str, Any] = {key: round(value, 6) for key, value in memory.items()}
        if memory and self._world.size > 1:
            told = self._world.gather(memory["reserved_gib"])
            fields["gpus"] = [
                {"name": name, "reserved_gib": round(gib, 6)} for name, (gib,) in zip(self._names, told, strict=True)
            ]
        self._events.write(
            "step",
            step=report.step,
            loss=report.loss,
            lr=report.learning_rate,
            grad_norm=report.grad_norm,
            sigma=report.sigma,
            seconds=round(report.seconds, 4),
            tokens=report.tokens,
            bins=report.bins,
            **({"terms": dict(report.terms)} if report.terms else {}),
            **fields,
        )

    def _memory(self) -> dict[str, float]:
        peaks = self._peaks()
        if peaks is None:
            return {}
        return {"allocated_gib": peaks.allocated / 2**30, "reserved_gib": peaks.reserved / 2**30}


class Validate:
    """Held-out loss every `validate_every` steps and at the end, and at each checkpoint where the best is kept."""

    def __init__(
        self,
        events: EventWriter,
        checkpoint: SaveCheckpoint,
        *,
        equal_counts: bool = False,
        took: Callable[[float], None] = lambda _seconds: None,
    ):
        """`took` is told the seconds of each."""
        self._events, self._checkpoint, self._equal_counts, self._took = events, checkpoint, equal_counts, took

    def needs_weights(self, trainer: Trainer) -> bool:
        return self._is_due(trainer, trainer.step)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if self._is_due(trainer, report.step):
            self.measure(trainer)

    def measure(self, trainer: Trainer) -> None:
        """The held-out loss now."""
        start = time.perf_counter()
        write_validation(trainer, self._events, equal_counts=self._equal_counts)
        self._took(time.perf_counter() - start)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        job = trainer.job
        if not job.held_out_samples:
            return False
        with_checkpoint = job.saving.keep_best and self._checkpoint.is_due(trainer, step)
        return with_checkpoint or is_due(step, trainer, job.loop.validate_every)


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

    def __init__(self, requests: Requests, act: Callable[[Trainer], None], is_asked: Callable[[], bool]):
        """`is_asked`: whether one of `requests` is there, as all ranks know it."""
        self._requests, self._act, self._is_asked = requests, act, is_asked

    def needs_weights(self, _trainer: Trainer) -> bool:
        return self._is_asked()

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step != trainer.step or not self._is_asked():
            return
        if trainer.team.world.is_first:
            self._requests.answer()
        self._act(trainer)


def write_validation(trainer: Trainer, events: EventWriter, *, equal_counts: bool = False) -> None:
    """Compute the held-out loss and write it to the diary; `equal_counts`: see `validation_loss`.

    A held-out sample that is gone from the cache is told, and the run goes on: nothing is trained on it.
    """
    start = time.perf_counter()
    try:
        with trainer.aside(), trainer.shown():
            loss, by_sigma, by_sample = validation_loss(trainer, equal_counts=equal_counts)
    except DatasetError as error:
        if trainer.team.world.size > 1:  # the other ranks wait for this one's part
            raise
        events.write("warning", message=f"the held-out loss at step {trainer.step} is not measured: {error}")
        return
    finally:
        trainer.model.train()
    seconds = round(time.perf_counter() - start, 4)
    if not math.isfinite(loss):
        events.write("warning", message=f"the held-out loss at step {trainer.step} is not finite: lower learning_rate.")
        return
    of_samples = {"by_sample": by_sample} if len(by_sample) <= MAX_SAMPLES_TOLD else {}
    events.write("validation", step=trainer.step, loss=loss, by_sigma=by_sigma, seconds=seconds, **of_samples)


def save_lora(
    folder: RunFolder,
    job: Job,
    prepared: Prepared,
    averages: Averages,
    *,
    step: int,
    world: World = ALONE,
    before_result: Callable[[], None] = lambda: None,
) -> Path:
    """Write the final LoRA into the run folder, with its metadata, and mark the run as finished; its path.

    `before_result` is called in between, to wait for what is written meanwhile. With an average (EMA), the weights that the
    file does not hold are written beside it. Of several ranks the first writes.
    """
    if not world.is_first:
        return folder.path / f"{lora_name(job)}.safetensors"
    described = describe(folder, job, step)
    if averages.beside is not None:
        which, show = averages.beside
        other = replace(described, name=beside_name(job), weights=which)
        with show():
            path = folder.path / f"{beside_name(job)}.safetensors"
            write_adapter(path, prepared.model, metadata=lora_metadata(other))
    path = folder.path / f"{lora_name(job)}.safetensors"
    with averages.saved(), timed("Writing the LoRA"):
        write_adapter(path, prepared.model, metadata=lora_metadata(described))
    before_result()
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

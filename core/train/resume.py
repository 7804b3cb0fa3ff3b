"""Checkpoints in a run: written between steps, and found again by the next process."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from ..disk import set_aside
from ..errors import RunError, WanTrainError
from ..parallel.world import ALONE, World
from ..settings.job import Job
from ..shortage import ShortageError
from .average import Show
from .checkpoints import Checkpoints, DamagedCheckpointError, HeldError, memory_suffices_for
from .copies import copy_checkpoint, copy_name
from .events import MAX_WAITING, EventWriter
from .label import lora_name
from .length import checkpoints_due
from .loop import StepReport, Trainer
from .partway import checkpoint_lora
from .prepare import timed
from .run_folder import RunFolder
from .scores import score_run
from .state import ADAPTER, Stateful, check, collect, restore


class SaveCheckpoint:
    """A checkpoint every `checkpoint_every` steps, or so many epochs, and at the end.

    That at the end is written beside what is still to be done, until `finish`. If the process is killed before, the run goes
    on from the checkpoint before it.
    """

    def __init__(
        self,
        folder: RunFolder,
        events: EventWriter,
        parts: Mapping[str, Stateful],
        *,
        describe: Callable[[int], Mapping[str, str]] = lambda _step: {},
        average: Show | None = None,
    ):
        """`describe`: what the adapter's file says about itself after so many steps. `average`: within it the adapter is the
        average that is kept beside it, for LoRA tools."""
        self._store, self._events, self._parts = folder.checkpoint_store, events, parts
        self._describe, self._average = describe, average
        self._folder = folder
        self._rhythm: Callable[[int], bool] | None = None
        self._under_way: tuple[int, Future[None], Callable[[], None]] | None = None  # step, and what tells

    def save(self, trainer: Trainer, *, is_last: bool = True) -> None:
        """Write the checkpoint of the trainer's step now. Of several ranks the first does: all have the same.

        `is_last`: the process ends after it. Else, where another program holds its folder, that is a warning.
        """
        self.finish()
        if not trainer.team.world.is_first:
            return
        write, tell = self._prepare(trainer)
        with nullcontext() if is_last else self._passing_over(trainer.step):
            write()
            tell()

    def begin(self, trainer: Trainer) -> None:
        """As `save`, but on a thread, until `finish`: after the last step, when nothing changes what is written any more."""
        self.finish()
        if not trainer.team.world.is_first:
            return
        write, tell = self._prepare(trainer)
        pool = ThreadPoolExecutor(1, thread_name_prefix="last checkpoint")
        written = pool.submit(write)
        pool.shutdown(wait=False)
        self._under_way = trainer.step, written, tell

    def finish(self) -> None:
        """Wait for what `begin` began, and tell of it. RunError where the disk refused."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            step, written, tell = under_way
            with self._passing_over(step):  # the LoRA is written in any case
                written.result()
                tell()

    @contextmanager
    def _passing_over(self, step: int) -> Iterator[None]:
        """A checkpoint that another program holds is told, and costs the run nothing but that."""
        try:
            yield
        except HeldError as error:
            self._events.write(
                "warning",
                message=f"the checkpoint of step {step} was not kept, and the run goes on without it: {error}",
            )

    def _prepare(self, trainer: Trainer) -> tuple[Callable[[], None], Callable[[], None]]:
        """What writes the trainer's step as it is now, and what then tells of it and copies it."""
        start = time.perf_counter()
        tensors, states = collect(self._parts)
        step, state, job = trainer.step, {"step": trainer.step, **states}, trainer.job
        average = None
        if self._average is not None:
            with self._average():
                average = self._parts[ADAPTER].state_dict()
        best, metadata = self._best(trainer), self._describe(step)
        took: list[float] = []

        def write() -> None:
            with timed(f"Writing the checkpoint of step {step}"):
                self._store.save(
                    step,
                    tensors,
                    state,
                    keep_last=job.loop.keep_last,
                    keep_also=best,
                    training=job.key,
                    metadata=metadata,
                    average=average,
                )
            took.append(time.perf_counter() - start)

        def tell() -> None:
            self._events.write("checkpoint", step=step, seconds=round(took[-1], 3))
            if job.loras_folder:
                self._copy(job, step)

        return write, tell

    def is_due(self, trainer: Trainer, step: int) -> bool:
        """Whether the run makes one after this step by itself."""
        self._rhythm = self._rhythm or checkpoints_due(trainer.job)
        return self._rhythm(step)

    def needs_weights(self, trainer: Trainer) -> bool:
        return self.is_due(trainer, trainer.step)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if not self.is_due(trainer, report.step):
            return
        if report.step == trainer.job.loop.steps:
            self.begin(trainer)  # beside what is done at the end: previews, and the LoRA
        else:
            self.save(trainer, is_last=False)

    def _best(self, trainer: Trainer) -> list[int]:
        """The steps of the best checkpoint and of that with the lowest held-out loss, where they are to be kept: of those
        before this one, which is kept anyway, and whose preview is yet to come."""
        if not trainer.job.saving.keep_best:
            return []
        scores = score_run(self._folder, trainer.job, read=False)
        return [one.step for one in (scores.best, scores.lowest) if one is not None]

    def _copy(self, job: Job, step: int) -> None:
        """To the folder of LoRAs. A disk that refuses is told, and the run goes on."""
        lora = checkpoint_lora(self._folder, step)
        name, folder = copy_name(lora_name(job), step), Path(job.loras_folder)
        try:
            if lora is None:
                raise FileNotFoundError("it was removed meanwhile")
            copy_checkpoint(self._folder, lora, folder, name, step=step, keep=job.saving.keep_copies)
        except (OSError, RunError) as error:
            self._events.write("warning", message=f"the checkpoint of step {step} was not copied to {folder}: {error}")


class SaveWhenDiaryFails:
    """A checkpoint as soon as the disk refuses the diary's lines, while it may still take one.

    The run then goes on: lines wait in memory till there is room. It ends, with another checkpoint, when too many wait;
    and where the disk refuses the checkpoint too.
    """

    def __init__(self, events: EventWriter, checkpoint: SaveCheckpoint):
        self._events, self._checkpoint = events, checkpoint
        self._saved = 0  # the step of the checkpoint made for the present trouble

    def needs_weights(self, _trainer: Trainer) -> bool:
        return self._events.trouble is not None and (not self._saved or self._events.is_overfull)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if self._events.trouble is None:
            self._saved = 0
        elif report.step == trainer.step and self.needs_weights(trainer):
            problem = self._events.sentence("the run goes on, and its lines wait in memory")
            self._checkpoint.save(trainer, is_last=self._events.is_overfull)
            if self._events.is_overfull:
                kept = f"more than {MAX_WAITING} lines waited for room; the checkpoint of step {trainer.step} is kept"
                raise RunError(self._events.sentence(kept))
            self._saved = trainer.step
            self._events.write("warning", message=problem)


def is_due(step: int, trainer: Trainer, every: int) -> bool:
    """Whether something that is done every so many steps, and at the end, is to be done after `step`."""
    return step % every == 0 or step == trainer.job.loop.steps


def resume(
    folder: RunFolder,
    events: EventWriter,
    parts: Mapping[str, Stateful],
    *,
    steps: int,
    training: str,
    world: World = ALONE,
) -> int:
    """Restore the newest sound checkpoint of at most `steps` steps; its step, or 0 where there is none.

    Damaged ones are set aside, which the diary tells. ShortageError if memory is too small, RunError if a checkpoint can't
    be read at all or is of another training; nothing is passed over then. Of several ranks the first looks, and the others
    restore what it has found.
    """
    if not world.is_first:
        return _resume_at(folder.checkpoint_store, world.from_first(None), parts, training)
    step = _resume_newest(folder, events, parts, steps, training)
    world.from_first(step)
    events.write("start", step=step)
    return step


def _resume_at(store: Checkpoints, step: int, parts: Mapping[str, Stateful], training: str) -> int:
    if step:
        path = dict(store.all())[step]
        _restore(path, parts, *_load(store, path, parts, training))
    return step


def _resume_newest(
    folder: RunFolder, events: EventWriter, parts: Mapping[str, Stateful], steps: int, training: str
) -> int:
    store, step = folder.checkpoint_store, 0
    for number, path in store.incomplete():
        with suppress(RunError):  # another program has a file of it open: it is not read in any case
            _set_aside(events, number, path, "a file is missing")
    for number, path in reversed([found for found in store.all() if found[0] <= steps]):
        try:
            tensors, states = _load(store, path, parts, training)
        except DamagedCheckpointError as error:
            _set_aside(events, number, path, str(error))
            continue
        _restore(path, parts, tensors, states)
        step = number
        break
    return step


def _load(
    store: Checkpoints, path: Path, parts: Mapping[str, Stateful], training: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The states of a checkpoint, all of them fit to be taken over."""
    tensors, states = store.load(path, training=training)
    try:
        with memory_suffices_for(f"the checkpoint {path}"):
            check(parts, tensors, states)
    except ShortageError:
        raise
    except (WanTrainError, ValueError, LookupError, TypeError, AttributeError) as error:
        if "manifest" in states:  # as it was written, so that older ones would not do either
            raise RunError(
                f"{path} is as it was written, but does not fit this run ({error}): train with the version that wrote it, or "
                "move it away to go on from an earlier one."
            ) from error
        raise DamagedCheckpointError(f"{path}: {error}") from error
    return tensors, states


def _restore(
    path: Path, parts: Mapping[str, Stateful], tensors: dict[str, torch.Tensor], states: dict[str, Any]
) -> None:
    """All parts, or an end of the run: what is half restored must not be trained on."""
    try:
        with memory_suffices_for(f"the checkpoint {path}"):
            restore(parts, tensors, states)
    except WanTrainError:
        raise
    except Exception as error:
        raise RunError(f"{path} can't be taken over ({type(error).__name__}: {error}): nothing was changed.") from error


def _set_aside(events: EventWriter, step: int, path: Path, reason: str) -> None:
    kept = set_aside(path)
    events.write(
        "warning",
        message=f"the checkpoint of step {step} is damaged and was passed over ({reason.rstrip('.')}); it is kept as {kept}.",
    )

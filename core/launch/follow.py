"""Following one run: its worker, what its event log says, how fast it goes, how it ends.

Whoever shows the run has the loop, and sleeps there as it suits him (a node asynchronously, a terminal plainly):

    run = FollowedRun(folder, steps)
    while not run.is_over:
        show(run.poll())
        sleep(POLL_SECONDS)
    show(run.end())
    if problem := run.problem(): ...
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..errors import START_AGAIN, RunError
from ..plan.rhythm import rhythms_of
from ..settings.job import Job
from ..train.events import Event
from ..train.history import LongHistory, read_long_history
from ..train.run_folder import RunFolder, deleted_message
from .exits import EXIT_FINISHED, EXIT_STOPPED
from .pace import Pace, duration
from .process import Worker

POLL_SECONDS = 0.2


class Beside(Protocol):
    """What goes along with a run and is not part of it, such as trackers that show its diary elsewhere."""

    def events(self) -> list[Event]:
        """What it has to say since the last call: warnings that the diary does not hold."""
        ...

    def end(self) -> None:
        """The run is over, and nobody writes its diary any more."""
        ...


class FollowedRun:
    """One run with its worker, which is started here. RunError if it can't be. Who starts it has claimed the folder."""

    def __init__(
        self,
        folder: RunFolder,
        steps: int,
        history: LongHistory | None = None,
        *,
        arguments: Sequence[str] = (),
        is_guest: bool = False,
        beside: Beside | None = None,
        job: Job | None = None,
    ) -> None:
        """`steps`: the length of the run. `job`: by which it is known what comes beside the steps.

        `history`: of the event log so far, where the caller has read it. `arguments`: further ones of the worker. `is_guest`:
        the run was started on another machine. `beside`: what is told of its start and end.
        """
        self._beside = beside
        self.folder = folder
        self.steps = steps
        self.history = read_long_history(folder.events_path) if history is None else history
        self.pace = Pace(job and rhythms_of(job))  # of this worker
        self.worker = Worker(folder, arguments=arguments, is_guest=is_guest)
        self.has_told = False  # whether this worker has told anything
        self.has_begun = False  # whether it has told at which step it begins
        self._deadline: float | None = None

    @property
    def last_step(self) -> int:
        """The newest step that the event log knows."""
        return self.history.losses.last_step

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._deadline is not None

    @property
    def is_over(self) -> bool:
        """Whether the worker has ended, or was asked to stop and has had its time."""
        has_had_its_time = self._deadline is not None and time.monotonic() >= self._deadline
        return has_had_its_time or self.worker.exit_code is not None

    def poll(self) -> list[Event]:
        """Events since the last call; `history` and `pace` have taken them in."""
        events = [*self.worker.poll(), *(self._beside.events() if self._beside else [])]
        for event in events:
            self.history.add(event)
            self.has_told = True
            self.has_begun = self.has_begun or event["event"] == "start"
            self.pace.add(event)
        return events

    def request_stop(self) -> None:
        """Let the worker finish its step and write a checkpoint. Before the first step there is nothing to keep."""
        self.worker.request_stop()
        self._deadline = time.monotonic() + self.pace.patience

    def end(self) -> list[Event]:
        """End the worker if it still runs, and forget the stop that was asked for; the last events."""
        self.worker.kill()
        if self.is_stopping:
            with suppress(OSError):  # it is forgotten before the next start, too
                self.folder.clear_stop()
        events = self.poll()
        if self._beside:
            self._beside.end()
        return events

    def problem(self) -> RunError | None:
        """Why the run that has ended has no LoRA; None if it has one: that counts, however the process ended."""
        if self.folder.finished_lora(self.steps):
            return None
        code = self.worker.exit_code
        if not self.folder.is_there:
            return RunError(deleted_message(self.folder), about=START_AGAIN)
        if code == EXIT_STOPPED:
            where = f"step {self.last_step} of {self.steps}"
            return RunError(f"the run was stopped at {where}: start it again to go on.", about=START_AGAIN)
        if self.history.state == "error":
            return RunError(self.history.message, about=self.history.about)
        if code == EXIT_FINISHED:
            message = (
                f"the run finished, but its LoRA is no longer in {self.folder.path}: start it again to write it anew."
            )
            return RunError(message, about=START_AGAIN)
        killed = " When main memory runs out, the system kills so." if code == -9 else ""
        return RunError(
            f"the training process ended unexpectedly (code {code}): start it again to go on from the last checkpoint.{killed} "
            f"The end of {self.worker.log_path}: {self.worker.log_tail(3)}",
            about=START_AGAIN,
        )

    def words(self) -> str:
        """Loss, learning rate, seconds a step, time left, memory, held-out loss; "" before this worker's first step."""
        step = self.history.last_step
        if not step or not self.pace.num_steps:
            return ""
        parts = [f"loss {step['loss']:.4f}"]
        parts += [f"lr {step['lr']:.2e}"] if "lr" in step else []
        parts += [f"{self.pace.seconds:.2f} s/it"]
        parts += [f"{duration(self.pace.left(self.steps - step['step']) or 0.0)} left"]
        parts += memory_words(step)
        held_out = self.history.validation
        parts += [f"held-out loss {held_out[held_out.last_step]:.4f}"] if held_out else []
        return "  ".join(parts)


def memory_words(step: Event) -> list[str]:
    """The GPU's memory at its fullest, as an event of a step tells it; of several GPUs each one's. [] on the CPU."""
    gpus = gpus_of_step(step)
    if len(gpus) > 1:
        return [f"{len(gpus)} GPUs: {', '.join(f'{gib:.1f}' for _, gib in gpus)} GiB"]
    return [f"{step['reserved_gib']:.1f} GiB"] if "reserved_gib" in step else []


def gpus_of_step(step: Event) -> list[tuple[str, float]]:
    """Name and GiB of each GPU of a run over several, by the number of its process; [] where the event has none."""
    found: list[dict[str, Any]] = step.get("gpus") or []
    try:
        return [(str(gpu["name"]), float(gpu["reserved_gib"])) for gpu in found]
    except (TypeError, KeyError, ValueError):  # of another version, or not ours
        return []

"""Training runs in worker processes, each on the next free device: several at once, or one after another."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..devices import resolve_device
from ..errors import RunError, WanTrainError
from ..settings.job import Job
from ..train.claim import Claim, InUseError, claim_folder, claim_run
from ..train.events import Event, read_history
from ..train.find_run import find_run
from ..train.run import RunStoppedError
from ..train.run_folder import RunFolder, deleted_message
from .display import Display, duration
from .pace import Pace
from .process import Worker
from .worker import EXIT_FINISHED, EXIT_STOPPED, device_lock

POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0  # between two looks into a folder


@dataclass(frozen=True)
class Planned:
    """A job and the folder that it is trained in."""

    name: str  # in messages: high, low, or single
    folder: RunFolder
    job: Job
    runs: Path | None = None  # where the folder is chosen among others; None: it is given

    def where(self) -> RunFolder:
        """The folder, as things are now: others may have trained meanwhile."""
        return find_run(self.runs, self.job) if self.runs else self.folder

    def claim(self, device: str) -> Claim:
        """Take the folder, and write the job there for a device. InUseError if somebody trains in it."""
        job = replace(self.job, device=device)
        return claim_run(self.runs, job) if self.runs else claim_folder(self.folder, job)


def auto_devices() -> list[str]:
    """What `auto` may choose from: every GPU, or the CPU where there is none."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


class StageQueue:
    """Trains what is planned; a device takes one run at a time."""

    def __init__(self, planned: Sequence[Planned], devices: Sequence[str], display: Display):
        self._waiting = list(planned)
        self._devices = list(devices)
        self._display = display
        self._running: dict[str, _Running] = {}  # by device
        self._seen: dict[str, float] = {}  # when the folder of a plan, by its name, may be looked into again
        self._told: set[str] = set()

    def run(self) -> tuple[dict[str, Path], list[str]]:
        """Train to the end: the LoRAs by name, and what failed, a sentence each.

        Ctrl+C and SIGTERM stop every run with a checkpoint, and raise RunStoppedError; a second one ends them at once.
        """
        finished: dict[str, Path] = {}
        problems: list[str] = []
        with _terminate_like_ctrl_c():
            try:
                while self._waiting or self._running:
                    self._start_waiting(finished, problems)
                    self._follow(finished, problems)
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise RunStoppedError from None
            finally:
                for running in self._running.values():
                    running.end()
                self._display.close()
        return finished, problems

    def _start_waiting(self, finished: dict[str, Path], problems: list[str]) -> None:
        """Look at each plan once, and then when a device is free: to look into folders takes time, and waiting hours."""
        for plan in list(self._waiting):
            is_new = plan.name not in self._seen
            device = self._free_device(plan) if time.monotonic() >= self._seen.get(plan.name, 0.0) else None
            if not is_new and device is None:
                continue
            self._seen[plan.name] = time.monotonic() + RETRY_SECONDS
            lora = plan.where().finished_lora(plan.job.loop.steps)
            if lora:
                self._display.say(f"{plan.name}: finished before ({lora})")
                finished[plan.name] = lora
                self._waiting.remove(plan)
            elif device is not None:
                self._start(plan, device, problems)

    def _start(self, plan: Planned, device: str, problems: list[str]) -> None:
        """Start a worker, unless another process trains in the folder, such as one that was left behind."""
        claim = None
        try:
            claim = plan.claim(device)
            self._display.say(f"{plan.name}: training on {device} in {claim.folder.path}")
            if claim.origin:
                self._display.say(f"{plan.name}: {claim.origin}")
            self._running[device] = _Running(plan, claim, self._display)
        except InUseError as error:
            self._tell_once(f"{plan.name}: waiting: {error}")
            return
        except WanTrainError as error:
            if claim is not None:
                claim.release()
            problems.append(f"{plan.name}: {error}")
            self._display.say(problems[-1])
        self._waiting.remove(plan)

    def _free_device(self, plan: Planned) -> str | None:
        choices = self._devices if plan.job.device == "auto" else [plan.job.device]
        holders = []
        for device in choices:
            if device not in self._running:
                lock = device_lock(resolve_device(device))
                if lock.acquire():
                    lock.release()
                    return device
                holders.append(lock.holder())
        message = f"{plan.name}: waiting for {' or '.join(choices)}, where another run trains"
        self._tell_once(". ".join([message, *filter(None, holders)]))
        return None

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._display.say(message)

    def _follow(self, finished: dict[str, Path], problems: list[str]) -> None:
        for device, running in list(self._running.items()):
            ended = running.worker.exit_code is not None
            running.take()
            if not ended:
                continue
            running.end()
            del self._running[device]
            lora = running.folder.finished_lora(running.plan.job.loop.steps)
            if lora:
                finished[running.plan.name] = lora
                self._display.say(f"{running.plan.name}: finished")
            else:
                problems.append(f"{running.plan.name}: {running.problem()}")
                self._display.say(problems[-1])

    def _stop(self) -> None:
        """Let each worker finish its step and write a checkpoint. One that has made no step has nothing to keep."""
        self._display.say("stopping: checkpoints are being written (Ctrl+C again to end at once)")
        for running in self._running.values():
            running.worker.request_stop()
        try:
            end = time.monotonic() + max((running.patience for running in self._running.values()), default=0.0)
            while time.monotonic() < end and any(r.worker.exit_code is None for r in self._running.values()):
                time.sleep(POLL_SECONDS)
                for running in self._running.values():
                    running.take()
        except KeyboardInterrupt:
            self._display.say("ended without waiting")
        for running in self._running.values():
            running.end()
            running.folder.clear_stop()
            self._display.say(f"{running.plan.name}: stopped at step {running.last_step}; start again to go on")


class _Running:
    """One worker and what its diary says."""

    def __init__(self, plan: Planned, claim: Claim, display: Display):
        self.plan = plan
        self.folder = claim.folder
        self._claim = claim
        self._display = display
        self._history = read_history(claim.folder.events_path)
        self._pace = Pace()
        self.worker = Worker(claim.folder)

    def end(self) -> None:
        """End the worker if it still runs, and let others have its folder."""
        self.worker.kill()
        self._claim.release()

    @property
    def last_step(self) -> int:
        """The newest step that the diary knows."""
        return max(self._history.losses, default=0)

    @property
    def patience(self) -> float:
        """Seconds in which it should have stopped by itself."""
        return self._pace.patience

    def take(self) -> None:
        """Read new events, and show them."""
        events = self.worker.poll()
        for event in events:
            self._history.add(event)
            self._pace.add(event)
        show_events(self._display, self.plan.name, events)
        if any(event["event"] == "step" for event in events):
            steps, text = self.plan.job.loop.steps, step_text(self._history.last_step)
            left = self._pace.left(steps - self.last_step)
            if left is not None:
                text += f"  {duration(left)} left"
            self._display.update(self.plan.name, self.last_step, steps, text)

    def problem(self) -> str:
        """Why it ended early."""
        self._display.end(self.plan.name)
        code = self.worker.exit_code
        if not self.folder.is_there:
            return deleted_message(self.folder)
        if code == EXIT_STOPPED:
            return f"the run was stopped at step {self.last_step}: start again to go on."
        if self._history.state == "error":
            return self._history.message
        kind = "said it was finished, but its LoRA is gone" if code == EXIT_FINISHED else f"ended early (code {code})"
        return (
            f"the training process {kind}; start again to go on from the last checkpoint. The end of "
            f"{self.folder.log_path}: {self.worker.log_tail(3)}"
        )


def step_text(step: Event) -> str:
    """A step event in a few words."""
    parts = [f"loss {step['loss']:.4f}"]
    parts += [f"lr {step['lr']:.2e}"] if "lr" in step else []
    parts += [f"{step['seconds']:.2f} s/it"] if "seconds" in step else []
    if "reserved_gib" in step:
        parts.append(f"{step['reserved_gib']:.1f} GiB")
    return "  ".join(parts)


def show_events(display: Display, name: str, events: Sequence[Event]) -> None:
    """Tell what is no step: what the run is busy with, how it holds the model, warnings, validation losses, previews."""
    for event in events:
        if event["event"] in ("status", "plan"):
            display.say(f"{name}: {event['message']}")
        elif event["event"] == "warning":
            display.say(f"{name}: warning: {event['message']}")
        elif event["event"] == "start" and event["step"]:
            display.say(f"{name}: going on from step {event['step']}")
        elif event["event"] == "validation":
            display.say(f"{name}: validation loss {event['loss']:.4f} at step {event['step']}")
        elif event["event"] == "preview":
            display.say(f"{name}: preview of step {event['step']}: {event['path']} ({duration(event['seconds'])})")


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, where that can be arranged: in the main thread.

    SIGINT too: a shell that starts a program in the background has it ignored, and `kill -INT` shall stop a run then.
    """

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse(problems: Sequence[str]) -> None:
    """RunError for runs that failed."""
    if problems:
        raise RunError(" ".join(problems))

"""Training runs in worker processes, each on the next free device, or several: at once, or one after another."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunError, WanTrainError, advised
from ..launch.follow import POLL_SECONDS, FollowedRun
from ..launch.free_gpu import FreeGpus
from ..launch.meeting import Meeting
from ..launch.pace import duration
from ..launch.planned import Planned, places_of
from ..launch.turns import DeviceTurn
from ..track.process import beside
from ..train.claim import Claim, InUseError
from ..train.events import Event
from ..train.run import RunStoppedError
from .advice import ADVICE
from .arguments import worker_arguments
from .display import Display

RETRY_SECONDS = 1.0  # between two looks into a folder


class StageQueue:
    """Trains what is planned; a device takes one run at a time, or two that alternate.

    `devices` are places: one device, or several that train a run together ("cuda:0,cuda:1"; see `places_of`).
    """

    def __init__(
        self,
        planned: Sequence[Planned],
        devices: Sequence[str],
        display: Display,
        meeting: Meeting | None = None,
        *,
        waits: bool = True,
    ):
        """`meeting`: of several machines, which are called to each run. `waits`: for a GPU that other programs have filled."""
        self._free_gpus = FreeGpus() if waits else None
        self._waiting, self._meeting = list(planned), meeting
        self._devices = list(devices)
        self._display = display
        self._running: list[_Running] = []
        self._seen: dict[str, float] = {}  # when the folder of a plan, by its name, may be looked into again
        self._told: set[str] = set()

    def run(self) -> tuple[dict[str, Path], list[str]]:
        """Train to the end: the LoRAs by name, and what failed, a sentence each.

        Ctrl+C and SIGTERM stop every run with a checkpoint, and raise RunStoppedError; a second one ends them at once.
        """
        finished: dict[str, Path] = {}
        problems: list[str] = []
        with terminate_like_ctrl_c():
            try:
                while self._waiting or self._running:
                    self._start_waiting(finished, problems)
                    self._follow(finished, problems)
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
                raise RunStoppedError from None
            finally:
                for running in self._running:
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
            self._display.say(f"{plan.name}: training on {device.replace(',', ', ')} in {claim.folder.path}")
            if claim.origin:
                self._display.say(f"{plan.name}: {claim.origin}")
            self._running.append(_Running(plan, claim, device, self._display, self._meeting))
        except InUseError as error:
            self._tell_once(f"{plan.name}: waiting: {error}")
            return
        except WanTrainError as error:
            if claim is not None:
                claim.release()
            problems.append(f"{plan.name}: {advised(error, ADVICE)}")
            self._display.say(problems[-1])
        self._waiting.remove(plan)

    def _free_device(self, plan: Planned) -> str | None:
        """The first place that is free for the plan, of several devices all; else one that it may take turns on."""
        choices = places_of(plan.job.device, self._devices)
        taken = {name for running in self._running for name in running.device.split(",")}
        holders, held = [], list[str]()
        for place in choices:
            names = place.split(",")
            if not taken.intersection(names):
                turn = DeviceTurn(names)
                if turn.acquire():
                    turn.release()
                    short = self._free_gpus.first_shortage(plan.job, names) if self._free_gpus else ""
                    if not short:
                        return place
                    holders.append(short)
                else:
                    holders.append(turn.holder())
                    held.append(place)
        for place in choices:
            if self._can_alternate_on(place, plan, is_held=place in held):
                steps = "1 step" if plan.job.alternate_every == 1 else f"{plan.job.alternate_every} steps"
                self._tell_once(f"{plan.name}: takes turns on {place}, {steps} each time")
                return place
        message = f"{plan.name}: waiting for {' or '.join(choices)}, where another run or program is"
        self._tell_once(". ".join([message, *filter(None, holders)]))
        return None

    def _can_alternate_on(self, place: str, plan: Planned, *, is_held: bool) -> bool:
        """Whether this is one device with one run that hands it over, where the worker waits for its turn.

        `is_held`: by a run of another process, of which nothing is known.
        """
        there = [running.plan.job for running in self._running if running.device == place]
        alternate = min([plan.job.alternate_every, *(job.alternate_every for job in there)]) > 0
        return "," not in place and alternate and (len(there) == 1 or (is_held and not there))

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._display.say(message)

    def _follow(self, finished: dict[str, Path], problems: list[str]) -> None:
        for running in list(self._running):
            if not running.run.is_over:
                running.take()
                continue
            running.end()
            self._running.remove(running)
            name, problem = running.plan.name, running.run.problem()
            lora = running.run.folder.finished_lora(running.run.steps)
            if lora and not problem:
                finished[name] = lora
                self._display.say(f"{name}: finished")
            elif problem:
                self._display.end(name)
                problems.append(f"{name}: {advised(problem, ADVICE)}")
                self._display.say(problems[-1])

    def _stop(self) -> None:
        """Let each worker finish its step and write a checkpoint. One that has made no step has nothing to keep."""
        self._display.say("stopping: checkpoints are being written (Ctrl+C again to end at once)")
        for running in self._running:
            running.run.request_stop()
        try:
            while not all(running.run.is_over for running in self._running):
                time.sleep(POLL_SECONDS)
                for running in self._running:
                    running.take()
        except KeyboardInterrupt:
            self._display.say("ended without waiting")
        for running in self._running:
            running.end()
            self._display.say(f"{running.plan.name}: stopped at step {running.run.last_step}; start again to go on")


class _Running:
    """A run on a device, and the claim on its folder."""

    def __init__(
        self, plan: Planned, claim: Claim, device: str, display: Display, meeting: Meeting | None = None
    ) -> None:
        """`device`: where it is trained, or several."""
        self.plan, self.device = plan, device
        arguments = worker_arguments(meeting, meeting.announce(claim.folder.path)) if meeting else ()
        trackers = beside(claim.folder, plan.track)
        self.run = FollowedRun(claim.folder, plan.job.loop.steps, arguments=arguments, beside=trackers, job=plan.job)
        self._claim = claim
        self._display = display

    def take(self) -> None:
        """Read new events, and show them."""
        self._show(self.run.poll())

    def end(self) -> None:
        """End the worker if it still runs, and let others have its folder."""
        self._show(self.run.end())
        self._claim.release()

    def _show(self, events: Sequence[Event]) -> None:
        show_events(self._display, self.plan.name, events)
        if any(event["event"] == "step" for event in events):
            self._display.update(self.plan.name, self.run.last_step, self.run.steps, self.run.words())


def show_events(display: Display, name: str, events: Sequence[Event]) -> None:
    """Tell what is no step: what the run is busy with, how it holds the model, warnings, held-out losses, previews."""
    for event in events:
        if event["event"] in ("status", "plan"):
            display.say(f"{name}: {event['message']}")
        elif event["event"] == "warning":
            display.say(f"{name}: warning: {event['message']}")
        elif event["event"] == "start" and event["step"]:
            display.say(f"{name}: going on from step {event['step']}")
        elif event["event"] == "validation":
            display.say(f"{name}: held-out loss {event['loss']:.4f} at step {event['step']}")
        elif event["event"] == "preview":
            display.say(f"{name}: preview of step {event['step']}: {event['path']} ({duration(event['seconds'])})")


@contextlib.contextmanager
def terminate_like_ctrl_c() -> Iterator[None]:
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

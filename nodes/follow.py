"""Runs a job in a worker process and shows it on a node: progress bar, live line, chart, Stop."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ..core.errors import RunError
from ..core.launch.display import duration
from ..core.launch.pace import Pace
from ..core.launch.process import Worker
from ..core.launch.worker import EXIT_FINISHED, EXIT_STOPPED
from ..core.settings.job import Job
from ..core.train.claim import Claim, InUseError, claim_run
from ..core.train.events import Event, needs_attention
from ..core.train.find_run import began, find_run
from ..core.train.history import LongHistory, read_long_history
from ..core.train.preview_folder import PreviewFolder
from ..core.train.run_folder import RunFolder, deleted_message
from . import host
from .previews import PreviewDecoder

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
POLLS_TO_WAIT = 5  # between two looks into a folder
_active: set[Path] = set()  # run folders that this process is training in
_runs_on: Counter[str] = Counter()  # how many runs of this process train on, or wait for, each device


class Follower:
    """One run, followed from one node."""

    def __init__(self, runs: Path, job: Job, node_id: str, decoder: PreviewDecoder | None = None):
        """`runs`: the folder of run folders. `decoder`: shows the job's previews."""
        self.job = job
        self.node_id = node_id
        self._runs = runs
        self._decoder = decoder
        self._pace = Pace()  # of this worker
        self.folder = find_run(runs, job)
        self.previews = PreviewFolder.of(self.folder)
        self.history = LongHistory()

    async def _show(self, folder: RunFolder) -> None:
        self.folder = folder
        self.previews = PreviewFolder.of(folder)
        self.history = await asyncio.to_thread(read_long_history, folder.events_path)

    async def run(self, *, workflow: dict | None, prompt: dict | None) -> RunFolder:
        """Train to the end, with the graph for the LoRA's metadata; the run's folder.

        Stop in the page, or a failure elsewhere in the graph, ends it with a checkpoint.
        """
        await self._show(self.folder)
        while not self.folder.finished_lora(self.job.loop.steps):
            choices = host.auto_devices() if self.job.device == "auto" else [self.job.device]
            device = min(choices, key=lambda name: _runs_on[name])
            _runs_on[device] += 1
            try:
                claim = await self._claim(device)
                if claim is not None:
                    await self._train(claim, device, {"workflow": workflow, "prompt": prompt})
                    break
            finally:
                _runs_on[device] -= 1
            await self._wait()
        return self.folder

    async def _claim(self, device: str) -> Claim | None:
        """Take the run's folder; None while another node of this process trains in it."""
        claiming = asyncio.ensure_future(asyncio.to_thread(claim_run, self._runs, replace(self.job, device=device)))
        try:
            claim = await asyncio.shield(claiming)
        except asyncio.CancelledError:  # another node failed; the thread can't be stopped
            claiming.add_done_callback(_give_back)
            raise
        except InUseError as error:
            if error.folder.path not in _active:
                raise
            return None
        await self._show(claim.folder)
        return claim

    async def _wait(self) -> None:
        host.show_text(self.node_id, "waiting: the same run is being trained by another node")
        for _ in range(POLLS_TO_WAIT):
            host.raise_if_interrupted()
            await asyncio.sleep(POLL_SECONDS)
        await self._show(await asyncio.to_thread(find_run, self._runs, self.job))

    async def _train(self, claim: Claim, device: str, graph: dict[str, dict | None]) -> None:
        """Start the worker at once: it loads its libraries, and then waits for its turn on the device."""
        _active.add(self.folder.path)
        try:
            if claim.origin:
                log.info("%s %s", self.folder.path.name, claim.origin)
                host.show_text(self.node_id, str(claim.origin))
            self.folder.write_workflow(**graph)
            host.free_vram()
            with self.previews.decoding() if self._decoder else nullcontext():
                worker = Worker(self.folder)
                log.info("training %s on %s: %s", self.job.name, device, self.folder.path)
                await self._follow(worker)
            self._check_end(worker)
        finally:
            _active.discard(self.folder.path)
            claim.release()

    async def _follow(self, worker: Worker) -> None:
        try:
            while worker.exit_code is None:
                events = worker.poll()
                self._take(events)
                self._show_previews(events)
                if host.interrupted():
                    await self._stop(worker)
                    host.raise_if_interrupted()
                await asyncio.sleep(POLL_SECONDS)
        except asyncio.CancelledError:  # another node failed or was stopped: end with a checkpoint, too
            await self._stop(worker)
            raise
        finally:
            worker.kill()
            self._take(worker.poll())

    async def _stop(self, worker: Worker) -> None:
        """Let the worker finish its step and write a checkpoint. Before the first step there is nothing to keep."""
        worker.request_stop()
        host.show_text(self.node_id, "stopping: the checkpoint is being written")
        deadline = time.monotonic() + self._pace.patience
        while worker.exit_code is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            self._take(worker.poll())
        self.folder.clear_stop()

    def _check_end(self, worker: Worker) -> None:
        code = worker.exit_code
        if code == EXIT_FINISHED or self.folder.finished_lora(self.job.loop.steps):
            return  # what is finished counts, however the process ended
        if not self.folder.is_there:
            raise RunError(deleted_message(self.folder))
        if code == EXIT_STOPPED:
            raise RunError(
                f"the run was stopped at step {self.last_step} of {self.job.loop.steps}: queue again to go on."
            )
        if self.history.state == "error":
            raise RunError(self.history.message)
        raise RunError(
            f"the training process ended unexpectedly (code {code}); queue again to go on from the last checkpoint. "
            f"The end of {self.folder.log_path}: {worker.log_tail(3)}"
        )

    @property
    def last_step(self) -> int:
        """The newest step that the diary knows."""
        return self.history.losses.last_step

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self.history.add(event)
            self._pace.add(event)
            if event["event"] in ("warning", "plan"):
                level = logging.WARNING if needs_attention(event) else logging.INFO
                log.log(level, "%s: %s", self.folder.path.name, event["message"])
        if not events:
            return
        host.show_progress(self.node_id, self.last_step, self.job.loop.steps)
        host.show_text(self.node_id, self.line())
        host.send_event("wan_train.update", self.update(events))

    def _show_previews(self, events: list[Event]) -> None:
        """Decode what the worker waits for, here where nothing else of the graph runs meanwhile."""
        steps = [event["step"] for event in events if event["event"] == "preview"]
        if self._decoder is None or not steps:
            return
        for step in steps:
            self._decoder.show(self.previews, step)
        host.send_event("wan_train.update", self.update([]))

    def line(self) -> str:
        """Step, loss, learning rate, seconds a step, time left, memory."""
        step = self.history.last_step
        if self.history.message or not step or not self._pace.num_steps:
            return self.history.message or "starting the trainer"
        seconds = self._pace.seconds
        parts = [
            f"step {step['step']}/{self.job.loop.steps}",
            f"loss {step['loss']:.4f}",
            *([f"lr {step['lr']:.2e}"] if "lr" in step else []),
            f"{seconds:.2f} s/it",
            f"{duration(self._pace.left(self.job.loop.steps - step['step']) or 0.0)} left",
        ]
        if "reserved_gib" in step:
            parts.append(f"{step['reserved_gib']:.1f} GiB")
        if self.history.validation:
            parts.append(f"validation {self.history.validation[self.history.validation.last_step]:.4f}")
        return "  ".join(parts)

    def update(self, events: list[Event]) -> dict:
        """What the front end's chart needs to move on."""
        return {
            "node_id": self.node_id,
            "run": self.folder.path.name,
            "steps": self.job.loop.steps,
            "state": self.history.state,
            "line": self.line(),
            "about": run_line(self.folder, self.job),
            "losses": [[e["step"], e["loss"]] for e in events if e["event"] == "step"],
            "validation": [[e["step"], e["loss"]] for e in events if e["event"] == "validation"],
            "previews": self.previews.videos(),
        }


def _give_back(claiming: "asyncio.Future[Claim]") -> None:
    if not claiming.cancelled() and claiming.exception() is None:
        claiming.result().release()


def run_line(folder: RunFolder, job: Job) -> str:
    """Which run it is: its name, the day it began, and its folder."""
    start = began(folder)
    since = "" if start is None else time.strftime(", begun %Y-%m-%d %H:%M", time.localtime(start))
    return f"run {job.name}{since}, in {folder.path.name}"

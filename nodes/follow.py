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
from ..core.train.events import Event, needs_attention, read_history
from ..core.train.job import Job
from ..core.train.preview_folder import PreviewFolder
from ..core.train.run_folder import RunFolder
from . import host
from .previews import PreviewDecoder

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
_active: set[Path] = set()  # run folders that this process is training in
_runs_on: Counter[str] = Counter()  # how many runs of this process train on, or wait for, each device


class Follower:
    """One run, followed from one node."""

    def __init__(self, folder: RunFolder, job: Job, node_id: str, decoder: PreviewDecoder | None = None):
        """`decoder`: shows the job's previews."""
        self.folder = folder
        self.previews = PreviewFolder.of(folder)
        self.job = job
        self.node_id = node_id
        self.history = read_history(folder.events_path)
        self._decoder = decoder
        self._pace = Pace()  # of this worker

    async def run(self) -> None:
        """Train to the end. Stop in the page, or a failure elsewhere in the graph, ends it with a checkpoint."""
        while self.folder.path in _active:
            host.raise_if_interrupted()
            host.show_text(self.node_id, "waiting: the same run is being trained by another node")
            await asyncio.sleep(POLL_SECONDS)
        if self.folder.finished_lora(self.job.loop.steps):
            return
        choices = host.auto_devices() if self.job.device == "auto" else [self.job.device]
        device = min(choices, key=lambda name: _runs_on[name])
        _active.add(self.folder.path)
        _runs_on[device] += 1
        try:
            await self._train(device)
        finally:
            _active.discard(self.folder.path)
            _runs_on[device] -= 1

    async def _train(self, device: str) -> None:
        """Start the worker at once: it loads its libraries, and then waits for its turn on the device."""
        self._prepare_folder(device)
        host.free_vram()
        with self.previews.decoding() if self._decoder else nullcontext():
            worker = Worker(self.folder)
            log.info("training %s on %s: %s", self.job.name, device, self.folder.path)
            await self._follow(worker)
        self._check_end(worker)

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

    def _prepare_folder(self, device: str) -> None:
        lock = self.folder.lock()
        if not lock.acquire():
            raise RunError(f"{self.folder.path} is being trained by another process: wait for it, or stop it there.")
        try:
            self.folder.refuse_newer_job()
            self.folder.write_job(replace(self.job, device=device))
        finally:
            lock.release()

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
        return max(self.history.losses, default=0)

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
            f"lr {step['lr']:.2e}",
            f"{seconds:.2f} s/it",
            f"{duration(self._pace.left(self.job.loop.steps - step['step']) or 0.0)} left",
        ]
        if "reserved_gib" in step:
            parts.append(f"{step['reserved_gib']:.1f} GiB")
        if self.history.validation:
            parts.append(f"validation {self.history.validation[max(self.history.validation)]:.4f}")
        return "  ".join(parts)

    def update(self, events: list[Event]) -> dict:
        """What the front end's chart needs to move on."""
        return {
            "node_id": self.node_id,
            "run": self.folder.path.name,
            "steps": self.job.loop.steps,
            "state": self.history.state,
            "line": self.line(),
            "losses": [[e["step"], e["loss"]] for e in events if e["event"] == "step"],
            "validation": [[e["step"], e["loss"]] for e in events if e["event"] == "validation"],
            "previews": self.previews.videos(),
        }

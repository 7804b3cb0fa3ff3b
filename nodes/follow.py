"""Runs a job in a worker process and shows it on a node: progress bar, live line, chart, Stop."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.launch.follow import POLL_SECONDS, FollowedRun
from ..core.settings.job import Job
from ..core.train.claim import Claim, InUseError, claim_run
from ..core.train.events import Event, needs_attention
from ..core.train.find_run import began, find_run
from ..core.train.history import read_long_history
from ..core.train.preview_folder import PreviewFolder
from ..core.train.run_folder import RunFolder
from . import host
from .previews import PreviewDecoder

log = logging.getLogger(__name__)
POLLS_TO_WAIT = 5  # between two looks into a folder
_active: set[Path] = set()  # run folders that this process is training in
_runs_on: Counter[str] = Counter()  # how many runs of this process train on, or wait for, each device


class Follower:
    """One run, followed from one node: as `FollowedRun`, asynchronously, so that the host goes on answering."""

    def __init__(self, runs: Path, job: Job, node_id: str, decoder: PreviewDecoder | None = None):
        """`runs`: the folder of run folders. `decoder`: shows the job's previews."""
        self.job = job
        self.node_id = node_id
        self._runs = runs
        self._decoder = decoder
        self.folder = find_run(runs, job)
        self.previews = PreviewFolder.of(self.folder)

    def _show(self, folder: RunFolder) -> None:
        self.folder = folder
        self.previews = PreviewFolder.of(folder)

    async def run(self, *, workflow: dict | None, prompt: dict | None) -> RunFolder:
        """Train to the end, with the graph for the LoRA's metadata; the run's folder.

        Stop in the page, or a failure elsewhere in the graph, ends it with a checkpoint.
        """
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
        self._show(claim.folder)
        return claim

    async def _wait(self) -> None:
        host.show_text(self.node_id, "waiting: the same run is being trained by another node")
        for _ in range(POLLS_TO_WAIT):
            host.raise_if_interrupted()
            await asyncio.sleep(POLL_SECONDS)
        self._show(await asyncio.to_thread(find_run, self._runs, self.job))

    async def _train(self, claim: Claim, device: str, graph: dict[str, dict | None]) -> None:
        """Start the worker at once: it loads its libraries, and then waits for its turn on the device."""
        _active.add(self.folder.path)
        try:
            if claim.origin:
                log.info("%s %s", self.folder.path.name, claim.origin)
                host.show_text(self.node_id, str(claim.origin))
            self.folder.write_workflow(**graph)
            host.free_vram()
            history = await asyncio.to_thread(read_long_history, self.folder.events_path)
            with self.previews.decoding() if self._decoder else nullcontext():
                run = FollowedRun(self.folder, self.job.loop.steps, history)
                log.info("training %s on %s: %s", self.job.name, device, self.folder.path)
                await self._follow(run)
            problem = run.problem()
            if problem:
                raise problem
        finally:
            _active.discard(self.folder.path)
            claim.release()

    async def _follow(self, run: FollowedRun) -> None:
        try:
            await self._until_over(run)
        except asyncio.CancelledError:  # another node failed or was stopped: end with a checkpoint, too
            self._stop(run)
            await self._until_over(run)
            raise
        finally:
            self._take(run, run.end())
        if run.is_stopping:
            host.raise_if_interrupted()

    async def _until_over(self, run: FollowedRun) -> None:
        while not run.is_over:
            events = run.poll()
            self._take(run, events)
            self._show_previews(run, events)
            if host.interrupted() and not run.is_stopping:
                self._stop(run)
            await asyncio.sleep(POLL_SECONDS)

    def _stop(self, run: FollowedRun) -> None:
        run.request_stop()
        host.show_text(self.node_id, "stopping: the checkpoint is being written")

    def _take(self, run: FollowedRun, events: list[Event]) -> None:
        for event in events:
            if event["event"] in ("warning", "plan"):
                level = logging.WARNING if needs_attention(event) else logging.INFO
                log.log(level, "%s: %s", self.folder.path.name, event["message"])
        if not events:
            return
        host.show_progress(self.node_id, run.last_step, run.steps)
        host.show_text(self.node_id, line(run))
        host.send_event("wan_train.update", self._update(run, events))

    def _show_previews(self, run: FollowedRun, events: list[Event]) -> None:
        """Decode what the worker waits for, here where nothing else of the graph runs meanwhile."""
        steps = [event["step"] for event in events if event["event"] == "preview"]
        if self._decoder is None or not steps or run.is_stopping:
            return
        for step in steps:
            self._decoder.show(self.previews, step)
        host.send_event("wan_train.update", self._update(run, []))

    def _update(self, run: FollowedRun, events: list[Event]) -> dict[str, Any]:
        """What the front end's chart needs to move on."""
        return {
            "node_id": self.node_id,
            "run": self.folder.path.name,
            "steps": run.steps,
            "state": run.history.state,
            "line": line(run),
            "about": run_line(self.folder, self.job),
            "losses": [[e["step"], e["loss"]] for e in events if e["event"] == "step"],
            "validation": [[e["step"], e["loss"]] for e in events if e["event"] == "validation"],
            "previews": self.previews.videos(),
        }


def line(run: FollowedRun) -> str:
    """What the run is busy with, or its step, loss, learning rate, seconds a step, time left, memory."""
    words = run.words()
    if run.history.message or not words:
        return run.history.message or "starting the trainer"
    return f"step {run.last_step}/{run.steps}  {words}"


def _give_back(claiming: "asyncio.Future[Claim]") -> None:
    if not claiming.cancelled() and claiming.exception() is None:
        claiming.result().release()


def run_line(folder: RunFolder, job: Job) -> str:
    """Which run it is: its name, the day it began, and its folder."""
    start = began(folder)
    since = "" if start is None else time.strftime(", begun %Y-%m-%d %H:%M", time.localtime(start))
    return f"run {job.name}{since}, in {folder.path.name}"

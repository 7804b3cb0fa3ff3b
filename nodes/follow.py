"""Runs a job in a worker process and shows it on a node: progress bar, live line, chart; and does what its buttons ask."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ConfigError, RunError
from ..core.launch.exits import EXIT_STOPPED
from ..core.launch.follow import POLL_SECONDS, FollowedRun
from ..core.launch.planned import places_of
from ..core.settings.job import Job
from ..core.settings.track import TrackOptions
from ..core.track.process import beside
from ..core.train.claim import Claim, InUseError, claim_run
from ..core.train.events import Event, needs_attention
from ..core.train.find_run import find_run
from ..core.train.history import MAX_ALARMS, LongHistory, read_long_history
from ..core.train.preview_folder import PreviewFolder
from ..core.train.requests import PREVIEW_FILE, SAVE_FILE, request
from ..core.train.run_folder import RunFolder
from . import host
from .page_file import node_token, note_shown
from .previews import PreviewDecoder
from .told import facts, progress_line, told

T = TypeVar("T")
log = logging.getLogger(__name__)
NO_TRACKERS = TrackOptions()
POLLS_TO_WAIT = 5  # between two looks into a folder
STOP, USE, SAVE, PREVIEW, PAUSE, GO_ON = "stop", "use", "save", "preview", "pause", "go_on"
_STARTING = ("new", "stopped", "finished", "error")  # states of a diary to which a new worker has not written yet
_active: set[Path] = set()  # run folders that this process is training in
_followed: dict[str, "Follower"] = {}  # by the name of the run's folder: what the page's buttons reach
_runs_on: Counter[str] = Counter()  # how many runs of this process train on, or wait for, each device


def followed(run: str) -> "Follower | None":
    """Who follows the run of this name in this process."""
    return _followed.get(run)


def is_training(device: str) -> bool:
    """Whether a run of this process trains, or waits to, on a device."""
    return _runs_on[device] > 0


@dataclass(frozen=True)
class Graph:
    """What a prompt says of where the node stands; None where it was queued by a program."""

    workflow: dict | None
    prompt: dict | None


class Follower:
    """One run, followed from one node: as `FollowedRun`, asynchronously, so that the host goes on answering."""

    def __init__(
        self,
        runs: Path,
        job: Job,
        node_id: str,
        decoder: PreviewDecoder | None = None,
        *,
        graph: Graph,
        notes: Sequence[str] = (),
        track: TrackOptions = NO_TRACKERS,
    ):
        """`runs`: the folder of run folders. `decoder`: shows the job's previews. `notes`: warnings to stand on the node."""
        self.job, self.node_id, self.graph = job, node_id, graph
        self.is_partial = False  # whether somebody stopped the run to use what there is
        self._runs, self._decoder, self._notes, self._track = runs, decoder, list(notes), track
        self._token = node_token(graph.workflow, node_id)
        self._run: FollowedRun | None = None
        self._wish = ""  # STOP, USE or PAUSE; set by another thread
        self._is_paused = False
        self._shown = ""  # the host's progress text
        self._show(find_run(runs, job))

    def _show(self, folder: RunFolder) -> None:
        self.folder = folder
        self.previews = PreviewFolder.of(folder)

    @property
    def asks(self) -> list[str]:
        """What can be asked of the run now: the buttons that the page shows."""
        run = self._run
        if self._is_paused:
            return [GO_ON, *([USE] if run and run.last_step else []), STOP]
        if run is None or run.is_stopping or run.is_over or self._is_done:
            return []
        if not run.last_step:
            return [STOP]
        return [STOP, USE, PAUSE, SAVE, *([PREVIEW] if self._decoder else [])]

    def ask(self, what: str) -> None:
        """Do one of `asks`, after the step that the run is in. PAUSE and GO_ON are for all runs of this process.

        ConfigError for what can't be asked now; OSError if the disk refuses.
        """
        if what not in self.asks:
            raise ConfigError("that can't be asked of the run at the moment: it is starting, stopping, or over.")
        if what in (SAVE, PREVIEW):
            request(self.folder.path, {SAVE: SAVE_FILE, PREVIEW: PREVIEW_FILE}[what])
        elif what == PAUSE:
            # The others first: what waits for its turn would else take the GPU that this one frees.
            for other in [other for other in _followed.values() if not other._is_paused and other is not self]:
                other._wish = other._wish or PAUSE
            self._wish = PAUSE
        elif what == GO_ON:
            for paused in [other for other in _followed.values() if other._is_paused]:
                paused._wish = GO_ON
        else:
            self._wish = what

    @property
    def state(self) -> str:
        """new, waiting, training, stopping, paused, stopped, finished, error."""
        if self._is_paused:
            return "paused"
        run = self._run
        if run is None:
            return "waiting"
        if run.is_stopping and (not run.is_over or self._wish == PAUSE):
            return "stopping"
        if run.is_stopping:
            return "finished" if run.history.state == "finished" else "stopped"
        is_starting = not run.has_begun and run.history.state in _STARTING
        return "waiting" if is_starting and not run.is_over else run.history.state

    @property
    def facts(self) -> list[str]:
        """Numbers for beside the curve."""
        return [] if self._run is None or self._is_paused or self._is_done else facts(self._run)

    @property
    def _is_done(self) -> bool:
        """Whether the run has told its end, although its process may not be gone yet."""
        run = self._run
        return run is not None and run.has_begun and run.history.state in ("finished", "error")

    @property
    def line(self) -> str:
        """What the run is busy with; "" while it makes steps."""
        run = self._run
        if self._is_paused and run is not None:
            return f"paused after step {run.last_step}, and the GPU's memory is free"
        if run is None or not run.has_told:
            return "starting the trainer"
        return run.history.message

    async def run(self) -> RunFolder:
        """Train to the end, with the graph for the LoRA's metadata; the run's folder.

        Stop, in the page's bar or on the node, or a failure elsewhere in the graph, ends it with a checkpoint.
        """
        if not await self._is_finished():
            self._send([])
        while not await self._is_finished():
            device = min(places_of(self.job.device, host.auto_devices()), key=_runs_of)
            _runs_on.update(device.split(","))
            try:
                claim = await self._claim(device)
                if claim is not None:
                    await self._train(claim, device)
                    break
            finally:
                _runs_on.subtract(device.split(","))
            await self._wait()
        notes = [] if self._decoder is None else self._decoder.notes
        await asyncio.to_thread(note_shown, self.folder, self._token, [*self._notes, *notes])
        return self.folder

    async def _is_finished(self) -> bool:
        """Its LoRA may have to be read to its end."""
        return bool(await asyncio.to_thread(self.folder.finished_lora, self.job.loop.steps))

    async def _claim(self, device: str) -> Claim | None:
        """Take the run's folder; None while another node of this process trains in it."""
        claiming = _in_thread(partial(claim_run, self._runs, replace(self.job, device=device)))
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

    async def _train(self, claim: Claim, device: str) -> None:
        """Start the worker at once: it loads its libraries, and then waits for its turn on the device."""
        _active.add(self.folder.path)
        _followed[self.folder.path.name] = self
        try:
            if claim.origin:
                log.info("%s %s", self.folder.path.name, claim.origin)
                self._notes.append(f"it {claim.origin}")
            await asyncio.to_thread(self._write_beside)
            with self.previews.decoding() if self._decoder else nullcontext():
                log.info("training %s on %s: %s", self.job.name, device.replace(",", ", "), self.folder.path)
                while await self._train_once() and await self._pause():
                    log.info("%s goes on", self.folder.path.name)
        finally:
            _active.discard(self.folder.path)
            del _followed[self.folder.path.name]
            self._run = None
            claim.release()

    def _write_beside(self) -> None:
        self.folder.write_workflow(workflow=self.graph.workflow, prompt=self.graph.prompt)
        note_shown(self.folder, self._token, self._notes)

    def _start(self) -> FollowedRun:
        history = read_long_history(self.folder.events_path)
        watched = beside(self.folder, self._track)
        return FollowedRun(self.folder, self.job.loop.steps, history, beside=watched, job=self.job)

    async def _started(self) -> FollowedRun:
        """The worker, started in a thread: a file of the run that another program holds is waited for."""
        starting = _in_thread(self._start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # another node failed; the thread can't be stopped
            run = await starting
            await asyncio.to_thread(run.end)
            raise

    async def _train_once(self) -> bool:
        """With one worker, to its end; whether it was paused there."""
        host.free_vram()
        self._run = run = await self._started()
        self._send([])
        await self._follow(run)
        if await self._is_finished():
            return False
        has_failed = run.has_begun and run.history.state == "error"
        if has_failed or not (run.is_stopping or run.worker.exit_code == EXIT_STOPPED):
            raise run.problem() or RunError(f"{self.folder.path} was finished by another process: press Run.")
        if self._wish in ("", STOP):
            raise host.Interrupted  # what was stopped has not failed, whoever stopped it
        self.is_partial = self._wish == USE
        return self._wish == PAUSE

    async def _pause(self) -> bool:
        """Until somebody wants the run to end, or (True) to go on."""
        self._wish, self._is_paused = "", True
        try:
            self._send([])
            while not self._wish:
                host.raise_if_interrupted()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._is_paused = False
        if self._wish == STOP:
            raise host.Interrupted
        self.is_partial = self._wish == USE
        goes_on, self._wish = self._wish == GO_ON, ""
        return goes_on

    async def _follow(self, run: FollowedRun) -> None:
        try:
            await self._until_over(run)
        except asyncio.CancelledError:  # another node failed or was stopped: end with a checkpoint, too
            self._stop(run)
            await self._until_over(run)
            raise
        finally:
            self._take(await asyncio.to_thread(run.end))
            self._send([])
        if run.is_stopping and not self._wish:
            host.raise_if_interrupted()

    async def _until_over(self, run: FollowedRun) -> None:
        while not run.is_over:
            events = run.poll()
            self._take(events)
            self._show_previews(run, events)
            if (host.interrupted() or self._wish) and not run.is_stopping:
                self._stop(run)
            await asyncio.sleep(POLL_SECONDS)

    def _stop(self, run: FollowedRun) -> None:
        run.request_stop()
        self._send([])

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if event["event"] in ("warning", "plan"):
                level = logging.WARNING if needs_attention(event) else logging.INFO
                log.log(level, "%s: %s", self.folder.path.name, event["message"])
        if not events or self._run is None:
            return
        host.show_progress(self.node_id, self._run.last_step, self._run.steps)
        line = progress_line(self.job.name, self._run)
        if line != self._shown:
            host.show_text(self.node_id, line)
            self._shown = line
        self._send(events)

    def _show_previews(self, run: FollowedRun, events: list[Event]) -> None:
        """Decode what the worker waits for, here where nothing else of the graph runs meanwhile."""
        steps = [event["step"] for event in events if event["event"] == "preview"]
        if self._decoder is None or not steps or run.is_stopping:
            return
        for step in steps:
            self._decoder.show(self.previews, step)
        self._send([])

    def _send(self, events: list[Event]) -> None:
        host.send_event("wan_train.update", self._update(events))

    def _update(self, events: list[Event]) -> dict[str, Any]:
        """What the front end's chart needs to move on, and by which it knows whether the run is of its node."""
        history = LongHistory() if self._run is None else self._run.history
        is_over = self._run is not None and self._run.is_over and not self._is_paused
        has_told = not events or any(event["event"] != "step" for event in events)
        return {
            **({"notes": told(self.folder, self.job, history, *self._notes, is_over=is_over)} if has_told else {}),
            "node_id": self.node_id,
            "token": self._token,
            "name": self.job.name,
            "stage": self.job.stage,
            "run": self.folder.path.name,
            "steps": self.job.loop.steps,
            "state": self.state,
            "line": self.line,
            "facts": self.facts,
            "asks": self.asks,
            "losses": [[e["step"], e["loss"]] for e in events if e["event"] == "step"],
            "validation": [[e["step"], e["loss"]] for e in events if e["event"] == "validation"],
            "previews": self.previews.videos(),
            "alarms": history.alarms[-MAX_ALARMS:],
        }


def _runs_of(place: str) -> int:
    """How many runs train on, or wait for, the busiest of its devices."""
    return max(_runs_on[name] for name in place.split(","))


def _in_thread(act: Callable[[], T]) -> "asyncio.Future[T]":
    """What `act` gives, on a thread. No task: when a node fails, ComfyUI cancels all tasks, and nobody would see the result."""
    return asyncio.get_running_loop().run_in_executor(None, act)


def _give_back(claiming: "asyncio.Future[Claim]") -> None:
    if not claiming.cancelled() and claiming.exception() is None:
        claiming.result().release()

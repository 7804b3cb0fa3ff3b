"""Reads the diary of one run, and gives each event to the trackers that have not had it."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import WanTrainError
from ..settings.track import TrackOptions
from ..train.events import Event, EventReader
from .board import TensorBoard
from .cursor import Cursor
from .run_facts import RunFacts, read_facts
from .sink import Sink, preview_paths
from .wandb_run import WandbRun
from .webhook import Webhook

ENDS = ("stopped", "finished", "error")
_TAKEN = ("start", "step", "validation", "preview", *ENDS)
_PATIENCE_S = 600.0  # for somebody to decode a preview
log = logging.getLogger(__name__)


class Tracker:
    """The trackers of one run. What goes wrong with one is said once, by `say`, and the others go on."""

    def __init__(self, folder: Path, options: TrackOptions, say: Callable[[str], None], *, since: float = 0.0) -> None:
        """`since`: a webhook that has told nothing of this run yet is silent about what came before. RunError: no run."""
        self.run = read_facts(folder)
        self.state = "new"
        self._say, self._told = say, set[str]()
        self._reader = EventReader(folder / "events.jsonl")
        self._waiting: list[Event] = []  # previews that nobody has decoded yet
        self._messages = 0
        self._sinks: list[tuple[Sink, Cursor]] = []
        for name, open_sink in _wanted(folder, options, self.run).items():
            try:
                sink = open_sink()
            except Exception as error:  # a library's errors are of any kind
                self._tell(name, error)
                continue
            cursor = Cursor(folder, sink.key, is_new=sink.is_new)
            cursor.skip_to(since if isinstance(sink, Webhook) else 0.0)
            self._sinks.append((sink, cursor))

    @property
    def names(self) -> list[str]:
        """Of the trackers that work."""
        return [sink.name for sink, _ in self._sinks]

    def read(self) -> int:
        """Take what the diary has now; the number of events."""
        events = [event for event in self._reader.stream() if event["event"] in _TAKEN]
        for event in events:
            if event["event"] in ("start", *ENDS):
                self.state = event["event"]
                self._messages += 1
                event["number"] = self._messages  # in the diary, which only grows
            elif event["event"] == "step":
                self.state = "training"
        waited, self._waiting = self._waiting, []
        for event in [*waited, *events]:
            self._give(event)
        for sink, cursor in list(self._sinks):
            if self._try(sink, sink.flush):
                cursor.save()
        return len(events)

    def close(self) -> None:
        """The run is over: previews that are still to be decoded are left out."""
        for sink, _ in list(self._sinks):
            self._try(sink, lambda sink=sink: sink.close(self.state))
        self._sinks = []

    def _give(self, event: Event) -> None:
        is_preview = event["event"] == "preview"
        if is_preview and not all(path.is_file() for path in preview_paths(self.run.folder, event).values()):
            if time.time() - event["time"] < _PATIENCE_S:
                self._waiting.append(event)
            return
        for sink, cursor in list(self._sinks):
            if (
                event["event"] in sink.kinds
                and not cursor.has(event)
                and self._try(sink, lambda sink=sink: sink.take(event))
            ):
                cursor.note(event)

    def _try(self, sink: Sink, act: Callable[[], None]) -> bool:
        """Whether it worked."""
        try:
            act()
        except Exception as error:  # a library's errors are of any kind, and none may end the others
            self._tell(sink.name, error)
            if sink.drops:
                self._sinks = [pair for pair in self._sinks if pair[0] is not sink]
            return False
        return True

    def _tell(self, name: str, error: Exception) -> None:
        log.debug("%s failed", name, exc_info=error)
        if name not in self._told:
            self._told.add(name)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            why = str(error) if isinstance(error, WanTrainError) else f"{type(error).__name__}: {lines[0][:300]}"
            self._say(f"{name} is not told of the run, which goes on: {why}")


def _wanted(folder: Path, options: TrackOptions, run: RunFacts) -> dict[str, Callable[[], Sink]]:
    wanted: dict[str, Callable[[], Sink]] = {}
    if options.tensorboard:
        place = folder.resolve().parent.parent / options.tensorboard  # an absolute one stays as it is
        wanted[TensorBoard.name] = lambda: TensorBoard(place, run)
    if options.wandb:
        wanted[WandbRun.name] = lambda: WandbRun(options.wandb, options.wandb_name, run)
    if options.webhook:
        wanted[Webhook.name] = lambda: Webhook(options.webhook, run)
    return wanted

"""The process in which a run's trackers live while it is trained: whatever they do, the training does not notice.

The parent writes the time and the options into its standard input, and closes that when the run is over. The process says on
its standard output what went wrong, a sentence a line.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import RunError
from ..parent import read_told
from ..serial import from_dict, to_dict
from ..settings.track import TrackOptions
from ..train.events import Event, EventWriter
from ..train.run_folder import RunFolder
from .tracker import ENDS, Tracker

PACK = Path(__file__).resolve().parents[2]
POLL_S = 1.0
LAST_WORDS_S = 30.0  # that a training process without a parent may take for its checkpoint
FINISH_S = 180.0  # for what is still to be sent; then the process ends
END_PATIENCE_S = 5.0  # that the parent waits for it; longer sending goes on without the parent


def beside(folder: RunFolder, options: TrackOptions) -> "TrackProcess | None":
    """The trackers of a run, started; None where none is wanted."""
    return TrackProcess(folder, options) if options.is_on else None


class TrackProcess:
    """As the one who follows the run sees it."""

    def __init__(self, folder: RunFolder, options: TrackOptions) -> None:
        self._folder = folder
        self._said: SimpleQueue[str] = SimpleQueue()
        self._kept: list[str] = []  # what the diary does not hold yet
        flags = ["-s"] if sys.flags.no_user_site else []
        command = [sys.executable, *flags, str(PACK / "wantrain.py"), "log", str(folder.path), "--follow-stdin"]
        since = time.time()  # a short run is over before the process has imported what it needs
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder.path,
                **_own_group(),
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([since, to_dict(options)]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self._process = None
            self._said.put(f"the process for the trackers can't be started ({error}): the run goes on without them.")
            return
        threading.Thread(target=self._listen, daemon=True, name="track").start()

    def events(self) -> list[Event]:
        """What went wrong since the last call, as warnings."""
        found: list[Event] = []
        while True:
            try:
                message = self._said.get_nowait()
            except Empty:
                return found
            self._kept.append(message)
            found.append({"event": "warning", "time": time.time(), "message": message})

    def end(self) -> None:
        """The run is over, and nobody else writes its diary now: what went wrong is kept there."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended before
                self._process.stdin.close()
            try:
                code = self._process.wait(END_PATIENCE_S)
                if code and not self._kept and self._said.empty():
                    self._said.put(
                        f"the process for the trackers ended unexpectedly (code {code}); the run is not affected."
                    )
            except subprocess.TimeoutExpired:
                pass  # it sends on by itself
        self.events()
        if self._kept and self._folder.is_there:
            events = EventWriter(self._folder.events_path)
            for message in self._kept:
                events.write("warning", message=message)
            self._kept = []

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line.decode("utf-8", "replace").strip())


def follow(folder: Path) -> int:
    """Inside the process: read the diary until the parent says that the run is over."""
    first = sys.stdin.buffer.readline()
    if not first.strip():
        raise RunError("log --follow-stdin is for the program itself: it reads its options from standard input.")
    since, given = json.loads(first)
    options = from_dict(TrackOptions, given, "the options of the trackers")
    over = threading.Event()
    threading.Thread(target=lambda: (read_told(0, 1), over.set()), daemon=True, name="parent").start()
    tracker = Tracker(folder, options, _say, since=since)
    while not over.wait(POLL_S):
        tracker.read()
    _end_in(FINISH_S)
    await_last_words(tracker, LAST_WORDS_S)
    tracker.close()
    return 0


def await_last_words(tracker: Tracker, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Read to the end; a training process whose parent died writes a little later that it stopped."""
    tracker.read()
    for _ in range(int(seconds / POLL_S)):
        if tracker.state in (*ENDS, "new", "start"):
            return
        sleep(POLL_S)
        tracker.read()


def _say(sentence: str) -> None:
    sys.stdout.write(sentence.replace("\n", " ") + "\n")
    sys.stdout.flush()


def _end_in(seconds: float) -> None:
    """A library that hangs shall not leave a process behind."""
    timer = threading.Timer(seconds, lambda: os._exit(1))
    timer.daemon = True
    timer.start()


def _own_group() -> dict[str, Any]:
    """Ctrl+C in the terminal is for the run; the trackers end when it has."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
    return {"start_new_session": True}

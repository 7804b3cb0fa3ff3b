"""What each tracker has taken of a run already: `track.json` in its folder, so that a resumed run is not logged twice."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..disk import write_atomic
from ..errors import WanTrainError
from ..safe_json import as_table, read_object
from ..train.events import Event

FILE = "track.json"


class Cursor:
    """The last step of each kind of event, and how many messages there were. Damage means: nothing was taken."""

    def __init__(self, folder: Path, key: str, *, is_new: bool) -> None:
        self._path, self._key = folder / FILE, key
        kept = {} if is_new else as_table(self._read().get(key))
        self._taken: dict[str, float] = {n: v for n, v in kept.items() if isinstance(v, (int, float))}
        self._is_changed, self._since = False, 0.0

    def has(self, event: Event) -> bool:
        """Whether the event was taken before, in this attempt of the run or in an earlier one.

        A run that goes on from an earlier checkpoint repeats steps, with the same numbers.
        """
        kind, at = _place(event)
        is_old = event["time"] < self._since and kind in ("messages", "preview")
        return is_old or self._taken.get(kind, -1) >= at

    def note(self, event: Event) -> None:
        """The event was taken."""
        kind, at = _place(event)
        self._taken[kind], self._is_changed = max(at, self._taken.get(kind, -1)), True

    def skip_to(self, time: float) -> None:
        """What was told before is old news: unless something was sent already, when what came since is still owed."""
        self._since = 0.0 if self._taken else time

    def save(self) -> None:
        """Keep it. What the disk refuses is logged twice, which is no harm to the run."""
        if not self._is_changed:
            return
        with suppress(WanTrainError, OSError):
            whole = {**self._read(), self._key: self._taken}
            write_atomic(self._path, lambda file: file.write(json.dumps(whole).encode()))
            self._is_changed = False

    def _read(self) -> dict[str, Any]:
        return read_object(self._path) or {}


def _place(event: Event) -> tuple[str, float]:
    if event["event"] in ("step", "validation", "preview"):
        return event["event"], event["step"]
    return "messages", event["number"]

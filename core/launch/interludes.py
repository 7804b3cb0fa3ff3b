"""What a run still has to do beside its steps, and how long that will take: by its job, its plan and its diary."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from ..plan.beside import usual
from ..plan.rhythm import Rhythm, Rhythms
from ..train.events import Event

_KEPT = 20  # of each
# By the event that ends it: the field of a plan's `beside`. A preview is over before ComfyUI has shown it.
_ENDED = {"validation": "validations", "preview": "previews", "checkpoint": "checkpoints"}


class Interludes:
    """Of the events of one training process. Without `rhythms`, nothing is known to come."""

    def __init__(self, rhythms: Rhythms | None) -> None:
        self._steps = 0 if rhythms is None else rhythms.steps
        self._rhythms: dict[str, Rhythm] = {}
        if rhythms is not None:
            self._rhythms = {name: getattr(rhythms, name) for name in _ENDED.values()}
        self._promised: dict[str, float] = {}  # seconds of each, by the plan
        self._measured: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in _ENDED.values()}
        self._step = 0  # the last one
        self._done: set[str] = set()  # after it

    def add(self, event: Event) -> None:
        """Take note of an event, of whatever kind."""
        kind = event["event"]
        if kind in ("start", "step"):
            self._step = int(event.get("step", 0))
            self._done = set(self._rhythms) if kind == "start" and self._step else set()
        elif kind in _ENDED:
            self._ended(_ENDED[kind], event)
        elif kind == "shown" and self._measured["previews"]:
            self._measured["previews"][-1] = float(event["seconds"])
        elif kind == "plan":
            self._promised = _promised_of(event)
            if "step" in event:  # they were made with another plan
                for found in self._measured.values():
                    found.clear()

    def seconds(self, name: str) -> float:
        """Of the next one: as those that were, else as the plan says, else nothing."""
        found = list(self._measured[name])
        return usual(found) if found else self._promised.get(name, 0.0)

    def left(self, steps: int) -> float:
        """Seconds of all that comes in the last `steps` steps of the run, and after the step before them if it has not come."""
        return sum(self._to_come(name, self._steps - steps) * self.seconds(name) for name in self._rhythms)

    def _to_come(self, name: str, step: int) -> int:
        rhythm = self._rhythms[name]
        is_waiting = step == self._step and name not in self._done and rhythm.is_due(step)
        return rhythm.after(step) + is_waiting

    def _ended(self, name: str, event: Event) -> None:
        step = int(event.get("step", 0))
        if step == self._step:
            self._done.add(name)
        is_beside_the_end = name == "checkpoints" and step == self._steps
        if "seconds" in event and not is_beside_the_end:
            self._measured[name].append(float(event["seconds"]))


def _promised_of(event: Event) -> dict[str, float]:
    beside: Mapping[str, Any] = event.get("beside", {})
    try:
        return {str(name): float(one["seconds"]) for name, one in beside.items()}
    except (TypeError, KeyError, ValueError, AttributeError):  # of another version, or not ours
        return {}

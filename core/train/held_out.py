"""The held-out losses of a run, as its diary has them, and how sure the difference of two of them is."""

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .events import Event, EventReader

LEAST_PAIRS = 3  # of differences, for a standard error
_FINGERPRINT = 256  # bytes at the start by which a diary is known again


@dataclass(frozen=True)
class HeldOutLoss:
    """One measurement. Noise and noise levels are the same at every step, so that the losses of two steps are pairs."""

    loss: float
    by_sample: tuple[float, ...] = ()  # the mean of each held-out sample
    by_sigma: tuple[float, ...] = ()  # the mean at each noise level

    def pairs(self, other: "HeldOutLoss") -> list[tuple[float, float]]:
        """Losses that differ by the weights alone: of samples, and where these are too few of noise levels; [] of none."""
        for mine, others in ((self.by_sample, other.by_sample), (self.by_sigma, other.by_sigma)):
            if len(mine) == len(others) >= LEAST_PAIRS:
                return list(zip(mine, others, strict=True))
        return []

    def between(self, other: "HeldOutLoss", share: float) -> "HeldOutLoss":
        """So far on the straight line to `other`, 0 to 1."""

        def mix(mine: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
            if len(mine) != len(others):
                return ()
            return tuple((1 - share) * a + share * b for a, b in zip(mine, others, strict=True))

        (loss,) = mix([self.loss], [other.loss])
        return HeldOutLoss(loss, mix(self.by_sample, other.by_sample), mix(self.by_sigma, other.by_sigma))


class HeldOut:
    """The measurements by step; each `read` takes in what is new in the diary."""

    def __init__(self, path: Path):
        self._reader = EventReader(path)
        self._found: dict[int, HeldOutLoss] = {}
        self._lock = threading.Lock()

    def read(self) -> dict[int, HeldOutLoss]:
        """All of them. Where attempts overlap after a crash, the last one counts."""
        with self._lock:
            for event in self._reader.stream():
                if event["event"] == "start":
                    self._found = {step: value for step, value in self._found.items() if step <= event["step"]}
                elif event["event"] == "validation" and math.isfinite(event["loss"]):
                    self._found[event["step"]] = _measured(event)
            return dict(self._found)


def read_held_out(path: Path) -> dict[int, HeldOutLoss]:
    """The measurements in a diary, of which a process reads each line once, as long as it begins as it did."""
    try:
        with path.open("rb") as file:
            start = file.read(_FINGERPRINT)
    except OSError:
        return {}
    return _reader_of(path, start).read()


@functools.lru_cache(maxsize=16)
def _reader_of(path: Path, _start: bytes) -> HeldOut:
    return HeldOut(path)


def at_step(measured: dict[int, HeldOutLoss], step: int) -> HeldOutLoss | None:
    """What was measured at a step, else on the line between its neighbours; None where it lies outside of them."""
    if step in measured:
        return measured[step]
    before = max((known for known in measured if known < step), default=None)
    after = min((known for known in measured if known > step), default=None)
    if before is None or after is None:
        return None
    return measured[before].between(measured[after], (step - before) / (after - before))


def difference(one: HeldOutLoss, other: HeldOutLoss) -> tuple[float, float | None]:
    """How much higher the loss of `one` is, and the standard error of that; None for the error where pairs are missing."""
    pairs = one.pairs(other)
    if not pairs:
        return one.loss - other.loss, None
    gaps = [a - b for a, b in pairs]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return one.loss - other.loss, math.sqrt(variance / len(gaps))


def _measured(event: Event) -> HeldOutLoss:
    return HeldOutLoss(float(event["loss"]), _numbers(event.get("by_sample")), _numbers(event.get("by_sigma")))


def _numbers(value: Any) -> tuple[float, ...]:
    items = cast(list[Any], value) if isinstance(value, list) else []
    found = [float(item) for item in items if isinstance(item, (int, float)) and math.isfinite(item)]
    return tuple(found) if len(found) == len(items) else ()

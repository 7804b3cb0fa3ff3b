"""What training steps take of a device's memory, apart from what is done between them: previews, and the held-out loss.

The planner learns from steps, and people are shown what they take. A preview may be larger than all clips.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from .host import note_idle


class MemoryPeaks(NamedTuple):
    """The most of a device's memory since a moment, in bytes."""

    allocated: int  # by tensors
    reserved: int  # by the process, for tensors that are there or may come


class Counters(Protocol):
    """Of a device's memory."""

    def peaks(self) -> MemoryPeaks | None:
        """Since `reset`; None on a device that does not count."""
        ...

    def reset(self) -> None:
        """The peaks are what is taken now."""
        ...


@dataclass(frozen=True)
class DeviceCounters:
    """Those that torch keeps, of a GPU alone."""

    device: torch.device

    def peaks(self) -> MemoryPeaks | None:
        """As `Counters` has it."""
        if self.device.type != "cuda":
            return None
        return MemoryPeaks(torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device))

    def reset(self) -> None:
        """As `Counters` has it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)


class StepMemory:
    """The peaks of a run's steps."""

    def __init__(self, counters: Counters) -> None:
        """`counters`: of the device that the run trains on, which nobody else resets."""
        self._counters = counters
        self._before = MemoryPeaks(0, 0)  # the last `aside`

    def begin(self) -> None:
        """Steps begin now: what came before was none."""
        self._before = MemoryPeaks(0, 0)
        self._counters.reset()

    def peaks(self) -> MemoryPeaks | None:
        """Of all steps up to now; None on a device that does not count."""
        now, before = self._counters.peaks(), self._before
        return now and MemoryPeaks(max(now.allocated, before.allocated), max(now.reserved, before.reserved))

    def allocated(self) -> int | None:
        """That one of the peaks."""
        peaks = self.peaks()
        return peaks and peaks.allocated

    @contextmanager
    def aside(self) -> Generator[None, None, None]:
        """Around what is no step: neither its memory nor, before the first step, its time is counted."""
        start, self._before = time.perf_counter(), self.peaks() or self._before
        try:
            yield
        finally:
            self._counters.reset()
            note_idle(time.perf_counter() - start)

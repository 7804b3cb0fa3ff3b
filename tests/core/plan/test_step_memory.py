"""What steps take of a device's memory, apart from what is done between them."""

import time

import pytest
import torch
from wan_train.core.plan import host
from wan_train.core.plan.step_memory import DeviceCounters, MemoryPeaks, StepMemory


class Card:
    """Counts as a GPU does: `take` gives everything back but for what stays."""

    def __init__(self):
        self.held, self.most = MemoryPeaks(0, 0), MemoryPeaks(0, 0)

    def take(self, allocated, reserved, *, stays=(0, 0)):
        self.most = MemoryPeaks(max(self.most.allocated, allocated), max(self.most.reserved, reserved))
        self.held = MemoryPeaks(*stays)

    def run_out(self, allocated, reserved, *, stays):
        self.take(allocated, reserved, stays=stays)
        raise torch.OutOfMemoryError

    def peaks(self):
        return self.most

    def reset(self):
        self.most = self.held


def test_the_peaks_are_those_of_steps_before_and_after():
    card = Card()
    memory = StepMemory(card)
    card.take(900, 950)  # the model is loaded
    memory.begin()
    assert memory.peaks() == (0, 0)
    card.take(50, 70)
    with memory.aside():
        assert memory.peaks() == (50, 70)
        card.take(500, 600, stays=(10, 60))
    assert memory.peaks() == (50, 70)
    card.take(60, 65)
    assert memory.peaks() == (60, 70)
    with pytest.raises(torch.OutOfMemoryError), memory.aside():
        card.run_out(990, 1000, stays=(10, 90))
    assert memory.peaks() == (60, 90)  # what a preview has left reserved, steps hold too
    assert memory.allocated() == 60


def test_a_device_that_does_not_count_has_none():
    memory = StepMemory(DeviceCounters(torch.device("cpu")))
    memory.begin()
    with memory.aside():
        pass
    assert memory.peaks() is None
    assert memory.allocated() is None


def test_what_is_aside_before_the_first_step_is_no_part_of_the_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(host, "process_age", lambda: now[0])
    monkeypatch.setattr(host._Idle, "seconds", 0.0)
    memory = StepMemory(Card())
    now[0] += 20.0
    with memory.aside():
        now[0] += 60.0
    assert host.busy_seconds() == 120.0

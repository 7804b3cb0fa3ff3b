"""The locks of several devices: all or none, in one order."""

import pytest
import torch
from wan_train.core.launch.turns import DeviceTurn
from wan_train.core.launch.worker import device_lock


@pytest.fixture
def free():
    """Whether each of three devices is free to others."""

    def look():
        found = []
        for index in range(5, 8):
            lock = device_lock(torch.device(f"cpu:{index}"))
            found.append(lock.acquire())
            lock.release()
        return found

    return look


def test_all_or_none(free):
    pair, other = DeviceTurn(["cpu:6", "cpu:5"]), DeviceTurn(["cpu:7", "cpu:6"])
    assert pair.acquire()
    assert free() == [False, False, True]
    assert not other.acquire()
    assert free() == [False, False, True]  # the one that it could have had is not kept
    pair.release()
    assert other.acquire()
    assert free() == [True, False, False]
    other.release()
    assert free() == [True, True, True]


def test_two_that_take_turns_never_hold_each_other_up():
    """Each fails while the other has any of its devices, and leaves nothing behind."""
    first, second = DeviceTurn(["cpu:5", "cpu:6"]), DeviceTurn(["cpu:6", "cpu:5"])
    for turn, other in [(first, second), (second, first)] * 3:
        assert turn.acquire()
        assert not other.acquire()
        turn.release()

"""Staged copies against a device whose copies lag: order, buffers that are in use, what is read ahead, given up, or fails."""

import gc
import queue
import threading
import weakref
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest
import torch
from wan_train.core.memory.copies import DirectStream, Loader, StagedLoader

SIZE, PATIENCE = 8, 60  # bytes of a block; seconds


def source(value, size=SIZE):
    return torch.full((size,), value, dtype=torch.uint8)


def empty():
    return torch.zeros(SIZE, dtype=torch.uint8)


class LaggingStream:
    """Copies in a thread of its own, in order, each once its `after` is passed, which are `threading.Event`s here."""

    def __init__(self):
        self.copied = 0
        self._queue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def mark(self):
        passed = threading.Event()
        passed.set()
        return passed

    def copy(self, target, source, after):
        return self.run(lambda: target.copy_(source), after)

    def run(self, act, after):
        done = threading.Event()
        self._queue.put((act, after, done))
        return done

    def hold_compute(self, event):
        assert event.wait(PATIENCE)

    def wait(self, event):
        assert event.wait(PATIENCE)

    def keep(self, tensor):
        pass

    def drain(self):
        last = self.copy(empty(), empty(), self.mark())
        self.wait(last)

    def _work(self):
        while True:
            act, after, done = self._queue.get()
            after.wait(PATIENCE)
            act()
            self.copied += 1
            done.set()


@pytest.fixture
def stream():
    return LaggingStream()


@pytest.fixture
def loader(stream):
    made = StagedLoader(stream, SIZE, pinned=False)
    yield made
    made.close()


def settle(loader):
    """Wait for all that the thread was told."""
    loader._thread.submit(int).result(PATIENCE)


def test_a_buffer_is_not_filled_before_its_copy_has_ended(stream, loader):
    gate, targets = threading.Event(), [empty() for _ in range(5)]
    arrivals = [loader.start(target, source(i + 1), gate) for i, target in enumerate(targets)]
    gate.set()
    for arrival in arrivals:
        arrival.hold_compute()
    assert [target.tolist() for target in targets] == [[i + 1] * SIZE for i in range(5)]


def test_reading_ahead_waits_for_copies_and_disturbs_none(stream, loader):
    gate, (a, b, c, d) = threading.Event(), (source(i) for i in (1, 2, 3, 4))
    targets = [empty() for _ in range(4)]
    arrivals = [loader.start(targets[0], a, gate), loader.start(targets[1], b, gate)]
    loader.read_ahead([c, d])
    loader.read_ahead([d])  # c is given up before it is read, and its buffer still waits for the copy of a
    arrivals.append(loader.start(targets[2], c, gate))
    arrivals.append(loader.start(targets[3], d, gate))
    gate.set()
    for arrival in arrivals:
        arrival.hold_compute()
    assert [target[0].item() for target in targets] == [1, 2, 3, 4]


def test_reading_waits_for_the_copies_before_one_that_was_given_up(stream, loader):
    gate, busy, target = threading.Event(), threading.Event(), empty()
    loader.start(empty(), source(1), stream.mark())
    last = loader.start(target, source(2), gate)
    settle(loader)
    loader._thread.submit(busy.wait, PATIENCE)
    ahead = source(3)
    loader.read_ahead([ahead])
    loader.read_ahead([ahead, source(4)])
    loader.read_ahead([ahead, source(5)])  # in the place of 4, which is not read yet, where 2 was
    busy.set()
    with pytest.raises(FutureTimeoutError):
        loader._thread.submit(int).result(0.1)
    gate.set()
    last.hold_compute()
    assert target.tolist() == [2] * SIZE


def test_what_was_read_ahead_is_copied_at_once_by_the_caller(stream, loader):
    ahead, target, gate = source(7), empty(), threading.Event()
    loader.read_ahead([ahead])
    settle(loader)
    loader._thread.submit(gate.wait, PATIENCE)  # the thread is busy
    loader.start(target, ahead, stream.mark()).hold_compute()
    gate.set()
    assert target.tolist() == [7] * SIZE


def test_what_a_buffer_still_has_is_not_read_again(stream, loader):
    block = source(7)
    loader.start(empty(), block, stream.mark()).hold_compute()
    block.fill_(8)
    for _ in range(100):
        target = empty()
        loader.start(target, block, stream.mark()).hold_compute()
    assert target.tolist() == [7] * SIZE
    assert all(staged is None or len(staged.copies) <= 2 for staged in loader._staged)


def test_a_copy_that_is_given_up_never_comes(stream, loader):
    target, busy = empty(), threading.Event()
    loader._thread.submit(busy.wait, PATIENCE)
    late = loader.start(target, source(7), stream.mark())
    late.cancel()
    Loader(stream).start(target, source(9), stream.mark()).hold_compute()
    busy.set()
    settle(loader)
    stream.drain()
    assert target.tolist() == [9] * SIZE


def test_a_copy_under_way_ends_before_what_comes_next(stream, loader):
    target, gate = empty(), threading.Event()
    early = loader.start(target, source(7), gate)
    settle(loader)
    early.cancel()
    following = Loader(stream).start(target, source(9), gate)
    gate.set()
    following.hold_compute()
    assert stream.copied == 2
    assert target.tolist() == [9] * SIZE


def test_what_reading_raises_reaches_the_caller_and_is_tried_again():
    loader = StagedLoader(DirectStream(), SIZE, pinned=False)
    too_large, target = source(1, SIZE + 1), torch.zeros(SIZE + 1, dtype=torch.uint8)
    loader.read_ahead([too_large])
    arrival = loader.start(target, too_large, None)
    with pytest.raises(RuntimeError, match="must match the size"):
        arrival.hold_compute()
    target, block = empty(), too_large.resize_(SIZE)
    loader.start(target, block, None).hold_compute()
    assert target.tolist() == [1] * SIZE
    loader.close()


def test_close_does_not_read_what_nobody_waits_for(stream):
    loader, gate = StagedLoader(stream, SIZE, pinned=False), threading.Event()
    loader._thread.submit(gate.wait, PATIENCE)
    loader.read_ahead([source(1), source(2)])
    reads = [staged.read for staged in loader._staged if staged is not None]
    shutdown = loader._thread.shutdown

    def watched(wait=True, *, cancel_futures=False):
        assert wait
        shutdown(wait=False, cancel_futures=cancel_futures)
        gate.set()  # what is under way ends after what waits was given up
        shutdown(wait=True)

    loader._thread.shutdown = watched
    loader.close()
    assert [read.cancelled() for read in reads] == [True, True]


def test_memory_is_given_back_at_once(stream):
    """What was copied to, by `close`; the loader, when it is dropped."""
    loader, target, busy = StagedLoader(stream, SIZE, pinned=False), empty(), threading.Event()
    held, dropped = weakref.ref(target), weakref.ref(loader)
    loader._thread.submit(busy.wait, PATIENCE)
    arrival = loader.start(target, source(1), stream.mark())
    busy.set()
    arrival.hold_compute()
    stream.drain()
    gc.disable()
    try:
        loader.close()
        del target, arrival
        assert held() is None
        del loader
        assert dropped() is None
    finally:
        gc.enable()

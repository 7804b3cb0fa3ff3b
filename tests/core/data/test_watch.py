import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from wan_train.core.data import watch
from wan_train.core.data.media import BadMediaError
from wan_train.core.data.watch import Interrupt, StoppedError, Work, check_span


class GivenUpError(Exception):
    pass


def test_whoever_waits_is_asked_on_their_own_thread_and_may_give_up():
    asked = []

    def check():
        asked.append(threading.current_thread())
        if len(asked) == 3:
            raise GivenUpError

    with pytest.raises(GivenUpError):
        Interrupt(check).result(Future())  # which never ends
    assert set(asked) == {threading.current_thread()}


def test_work_on_a_thread_ends_when_its_caller_gives_up():
    interrupt, running = Interrupt(lambda: pytest.fail("asked on the wrong thread")), threading.Event()

    def work():
        while True:
            running.set()
            interrupt()

    with ThreadPoolExecutor(1) as pool:
        with interrupt:
            future = pool.submit(work)
            running.wait()
        assert isinstance(future.exception(), StoppedError)


def test_what_is_done_is_handed_on_without_a_question():
    future = Future()
    future.set_result(5)
    assert Interrupt(lambda: pytest.fail("asked")).result(future) == 5


def test_limits_of_frames_pixels_and_seconds(monkeypatch):
    Work(None, watch.CLIP_PIXELS).expect(100_000, 3840, 2160)  # an hour of 4K, all of it
    Work(None, watch.CLIP_PIXELS).frame(7680 * 2, 4320 * 2)  # a still of 16K
    with pytest.raises(BadMediaError, match="200000 frames of 3840x2160 would have to be decoded, and the limit"):
        Work(None, watch.CLIP_PIXELS).expect(200_000, 3840, 2160)
    with pytest.raises(BadMediaError, match="it is 20000x20000 pixels, and 180 million are the limit; scale it down"):
        Work(None, watch.CLIP_PIXELS).frame(20_000, 20_000)
    work = Work(None, 1000)
    for _ in range(10):
        work.frame(10, 10)
    with pytest.raises(BadMediaError, match="would have to be decoded"):
        work.frame(10, 10)
    monkeypatch.setattr(watch, "MAX_FRAMES", 2)
    work = Work(None, 1000)
    work.packet()
    work.packet()
    with pytest.raises(BadMediaError, match="it has more than 2 frames"):
        work.packet()
    monkeypatch.setattr(watch, "MAX_SECONDS", -1)
    with pytest.raises(BadMediaError, match="decoding it took more than -1 seconds") as error:
        Work(None, 1000).frame(1, 1)
    assert error.value.passing


@pytest.mark.parametrize("span", [25 * 3.6e9, float("inf"), float("nan")])
def test_a_span_that_no_clip_has(span):
    check_span(24 * 3.6e9)
    with pytest.raises(BadMediaError, match="24 are the limit for one file: its timestamps are damaged"):
        check_span(span)

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from wan_train.core.data import ahead as module
from wan_train.core.data.ahead import Inline, WriteBehind, on_threads, read_ahead

SIZES = {"big": 60, "small": 20}


def take(items, read, **options):
    """Results in order, an exception as itself."""
    return [future.exception() or future.result() for _, future in read_ahead(items, read, lambda _: 1, **options)]


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_order_and_errors_stay_in_their_place(ahead, monkeypatch):
    monkeypatch.setattr(module, "_num_threads", lambda: 4)
    done = [threading.Event() for _ in range(8)]

    def read(number):
        if ahead > 1 and number % 2 == 0:
            assert done[number + 1].wait(60)  # the later of two is done first
        done[number].set()
        if number == 3:
            raise ValueError("three")
        return number * 10

    results = take(range(8), read, ahead=ahead)
    assert [r for r in results if isinstance(r, int)] == [0, 10, 20, 40, 50, 60, 70]
    assert isinstance(results[3], ValueError)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_started_than_allowed(ahead):
    started = []
    reader = read_ahead(range(9), started.append, lambda _: 1, ahead=ahead)
    for position, (_, future) in enumerate(reader):
        future.result()
        assert len(started) <= position + 1 + ahead
    assert len(started) == 9


def test_what_waits_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda *_: Inline())  # what may start has started
    started = []
    items = ["small", "small", "small", "big", "big", "small"]
    reader = read_ahead(items, started.append, lambda name: SIZES[name], ahead=9, limit=70)
    counts = []
    for _, future in reader:
        future.result()
        counts.append(len(started))
    # Behind each: two small ones; small, as a big one more would be 80; big; nothing, as two would be 80; small.
    assert counts == [3, 3, 4, 5, 6, 6]


def test_one_item_larger_than_the_limit_has_its_turn_all_the_same():
    assert take([5, 6], lambda number: number, ahead=2, limit=0) == [5, 6]


def test_a_closed_reader_leaves_no_threads_and_starts_nothing_more(monkeypatch):
    """What is at work is waited for, and nothing that waits is begun."""
    before, started, gate = set(threading.enumerate()), [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            assert wait
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            gate.set()
            super().shutdown(wait=True)

    def read(number):
        started.append(number)
        assert gate.wait(60)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(module, "_num_threads", lambda: 3)
    reader = read_ahead(range(50), read, lambda _: 1, ahead=20)
    next(reader)
    reader.close()
    assert set(threading.enumerate()) <= before
    assert len(started) <= 3


def test_reading_runs_beside_the_work():
    begun = threading.Event()

    def read(number):
        if number == 1:
            begun.set()

    reader = read_ahead(range(2), read, lambda _: 1, ahead=1)
    next(reader)[1].result()
    assert begun.wait(60)  # while it is still the first one's turn
    reader.close()


def fail(message):
    raise OSError(message)


def test_writes_keep_their_order_and_are_done_on_exit():
    written, gate = [], threading.Event()

    def slowly(number):
        assert gate.wait(60)
        written.append((number, threading.current_thread() is threading.main_thread()))

    with WriteBehind(beside=True) as write:
        write(slowly, 0)
        assert written == []  # it runs beside
        gate.set()
        for number in range(1, 4):
            write(slowly, number)
    assert written == [(number, False) for number in range(4)]
    with WriteBehind(beside=False) as write:
        write(slowly, 4)
        assert written[4] == (4, True)


def test_a_failed_write_is_told():
    with WriteBehind(beside=False) as write, pytest.raises(OSError, match="disk"):
        write(fail, "disk")

    def later(gate):
        gate.wait(5)
        fail("disk")

    gate = threading.Event()
    with WriteBehind(beside=True) as write:
        write(later, gate)
        gate.set()
        with pytest.raises(OSError, match="disk"):
            write(fail, "the next one")
    with pytest.raises(OSError, match="disk"), WriteBehind(beside=True) as write:
        write(fail, "disk")


@pytest.mark.parametrize(("raised", "expected"), [(KeyboardInterrupt, KeyboardInterrupt), (ValueError, OSError)])
def test_what_was_handed_over_is_written_when_the_work_is_broken_off(raised, expected):
    written, gate = [], threading.Event()

    def save():
        gate.wait(5)
        written.append(1)
        fail("disk")

    def work():
        with WriteBehind(beside=True) as write:
            write(save)
            gate.set()
            raise raised

    with pytest.raises(expected):
        work()
    assert written == [1]


def test_what_is_made_on_threads_comes_in_order_and_few_items_wait():
    fetched, done = [], [threading.Event() for _ in range(50)]

    def items():
        for number in range(50):
            fetched.append(number)
            yield number

    def act(number):
        if number % 3 == 0 and number + 1 < 50:
            assert done[number + 1].wait(60)  # the later one is done before
        done[number].set()
        return number, threading.get_ident()

    made = on_threads(act, items(), 2)
    first, thread = next(made)
    assert first == 0
    assert thread != threading.get_ident()
    assert len(fetched) <= 3
    rest = list(made)
    assert [number for number, _ in rest] == list(range(1, 50))
    assert len({thread for _, thread in rest}) == 2


@pytest.mark.parametrize("by", ["items", "act"])
def test_what_raises_beside_comes_out_and_the_threads_end(by):
    def items():
        yield from range(3)
        if by == "items":
            raise ValueError("at 3")
        yield 3

    def act(number):
        if number == 3:
            raise ValueError("at 3")
        return number

    with pytest.raises(ValueError, match="at 3"):
        list(on_threads(act, items(), 2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("on-threads")]


def test_what_is_known_at_once_is_read_by_nobody():
    read = []
    coming = read_ahead(
        range(6), lambda i: read.append(i) or i, lambda _: 1, ahead=2, at_once=lambda i: i * 10 if i % 2 else None
    )
    assert [future.result() for _, future in coming] == [0, 10, 2, 30, 4, 50]
    assert sorted(read) == [0, 2, 4]

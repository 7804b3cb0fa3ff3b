"""Work beside an encoder, on threads: what comes next is read ahead, what is done is written behind, all in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # samples
AHEAD_BYTES = 2**30


class Inline(Executor):
    """Does what is submitted at once, on the caller's thread."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> "Future[R]":
        """A future that is done."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def read_ahead(
    items: Sequence[T],
    read: Callable[[T], R],
    num_bytes: Callable[[T], int],
    *,
    ahead: int,
    limit: int = AHEAD_BYTES,
    at_once: Callable[[T], R | None] = lambda _: None,
) -> Generator[tuple[T, "Future[R]"], None, None]:
    """Each item, in order, with what `read` makes of it, or raises.

    Up to `ahead` of the items that follow are read meanwhile, as far as together they take no more than `limit` bytes by
    `num_bytes`; with 0 nothing is read before its turn. What `at_once` gives on the caller's thread
    needs no reading. When the iterator is closed, its threads have ended.
    """
    pool = ThreadPoolExecutor(min(ahead, _num_threads()), "read-ahead") if ahead else Inline()
    sizes = [num_bytes(item) for item in items]
    waiting: deque[Future[R]] = deque()
    submitted = 0
    try:
        for position, item in enumerate(items):
            while submitted < len(items) and _may_start(sizes[position + 1 : submitted + 1], ahead, limit):
                known = at_once(items[submitted])
                waiting.append(pool.submit(read, items[submitted]) if known is None else _done(known))
                submitted += 1
            yield item, waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def on_threads(act: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """What `act` makes of each item, in order; while it is made, the next items are fetched, a few at most."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "on-threads") as pool:
        for item in items:
            waiting.append(pool.submit(act, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class WriteBehind:
    """Writes on a thread of its own (`beside`), or at once. On exit everything is written, whatever else was raised.

    What a write raises comes out of the next call, or of the exit.
    """

    def __init__(self, *, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "write-behind") if beside else Inline()
        self._last: Future[Any] | None = None

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):  # which a failed write came before
                self._settle()
        finally:
            self._pool.shutdown(wait=True)

    def __call__(self, write: Callable[..., object], /, *args: Any) -> None:
        """Let `write(*args)` be done; waits until the one before is."""
        self._settle()
        self._last = self._pool.submit(write, *args)
        if self._last.done():
            self._settle()

    def _settle(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


def _done(result: R) -> "Future[R]":
    future: Future[R] = Future()
    future.set_result(result)
    return future


def _may_start(sizes: Sequence[int], ahead: int, limit: int) -> bool:
    """Whether items of these sizes may wait behind the one whose turn it is; that one itself always may."""
    return not sizes or (len(sizes) <= ahead and sum(sizes) <= limit)


def _num_threads() -> int:
    """Half of the cores: decoders have threads of their own, and the encoder needs one."""
    return max(1, (os.cpu_count() or 2) // 2)

"""How soon a thread that has let go of Python gets it back, while threads of ours work beside each other.

A thread lets go of Python for every operator of PyTorch and every piece of a file. By default the others then keep it for five
milliseconds, however short the operator was: putting an adapter on a model, thousands of short operators, took 2.8 times as
long beside a thread that computes in Python, and with a tenth of that interval 1.3 times.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SOON_S = 0.0005


class _Users:
    """Who wants it so, at the moment: the interval is one for the whole process."""

    def __init__(self) -> None:
        self._lock, self._count, self._usual = threading.Lock(), 0, SOON_S

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(SOON_S, self._usual))
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                sys.setswitchinterval(self._usual)


_USERS = _Users()


@contextmanager
def switching_soon() -> Iterator[None]:
    """Within it, and as long as any thread is within it, a thread waits for Python a tenth of the usual time."""
    _USERS.enter()
    try:
        yield
    finally:
        _USERS.leave()

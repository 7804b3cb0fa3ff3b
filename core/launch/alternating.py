"""The turn of a run on its device, which a run that alternates with another hands over and gets back.

Two locks: the device's is held by whoever trains, `next` by the run that alternates and has the next turn. So the one that
trains sees whether somebody waits; the one that has handed over can't take the device again before the other has had it; and
a run that does not alternate lets those go first that do. The system frees both locks of a process that dies.
"""

import time
from collections.abc import Callable

from ..locks import FileLock

POLL_S = 0.01  # between two tries, of which each opens a file
POLLS_TO_ASK = 20  # between two looks whether the run shall stop


class AlternatingTurn:
    """The turn of one run. `core.train.alternate.Turns` is what the run sees of it."""

    def __init__(self, device: FileLock, *, alternates: bool) -> None:
        """`device`: its lock (see `worker.device_lock`). `alternates`: whether the run hands it over on its way."""
        self._device, self._alternates = device, alternates
        self._next = FileLock(device.path.with_suffix(".next.lock"))
        self.has_waited = False  # for a run that then was on the device, or still is

    def acquire(self) -> bool:
        """Whether it is this run's turn now."""
        found = self._acquire_next() if self._alternates else self._acquire_after_those_that_alternate()
        self.has_waited = self.has_waited or not found
        return found

    def _acquire_next(self) -> bool:
        if not (self._next.held or self._next.acquire()) or not self._device.acquire():
            return False
        self._next.release()
        return True

    def _acquire_after_those_that_alternate(self) -> bool:
        if not self._device.acquire():
            return False
        if self._is_next_waiting():
            self._device.release()
            return False
        return True

    def is_wanted(self) -> bool:
        """Whether another run that alternates waits for the device. Asked by the one that has it."""
        return self._alternates and self._is_next_waiting()

    def _is_next_waiting(self) -> bool:
        if not self._next.acquire():
            return True
        self._next.release()
        return False

    def hand_over(self, ask: Callable[[], bool]) -> bool:
        """Let the other run train, and wait for the next turn; False, without the turn, if `ask` says meanwhile to stop."""
        self._device.release()
        polls = 0
        while not self._acquire_next():
            polls += 1
            if polls % POLLS_TO_ASK == 0 and ask():
                return False
            time.sleep(POLL_S)
        return True

    def release(self) -> None:
        """The run is over, or no longer waits."""
        self._device.release()
        self._next.release()

    def holder(self) -> str:
        """Who holds the device, as a sentence; empty where the system frees the lock."""
        return self._device.holder()

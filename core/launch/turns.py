"""The turn of a run on its devices: the locks of all of them, or of none."""

from collections.abc import Sequence
from typing import cast

import torch

from ..devices import resolve_device
from ..locks import FileLock
from .worker import device_lock


class DeviceTurn:
    """The locks of several devices, taken together.

    None is kept while another is not to be had, and all runs try them in the same order: so two runs that want the same
    devices never wait for each other.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: of the devices."""
        devices = sorted((resolve_device(name) for name in names), key=_order)
        self._locks = [device_lock(device) for device in devices]
        self._missing: FileLock | None = None

    def acquire(self) -> bool:
        """Whether all of them are taken now."""
        for index, lock in enumerate(self._locks):
            if not lock.acquire():
                self._missing = lock
                for taken in self._locks[:index]:
                    taken.release()
                return False
        self._missing = None
        return True

    def release(self) -> None:
        """Give them back."""
        for lock in self._locks:
            lock.release()

    def holder(self) -> str:
        """Who holds the one that was not free, as a sentence; empty where the system does not say."""
        return "" if self._missing is None else self._missing.holder()


def _order(device: torch.device) -> tuple[str, int]:
    return device.type, cast(int | None, device.index) or 0  # a name without a number is the first

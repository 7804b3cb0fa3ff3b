"""A test that has the device itself, while runs that shall take turns on it start."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from wan_train.core.launch.alternating import AlternatingTurn
from wan_train.core.launch.worker import device_lock
from wan_train.core.locks import FileLock
from wan_train.core.train.events import EventReader


@contextlib.contextmanager
def turn_on_cpu(temporary: Path) -> Iterator[AlternatingTurn]:
    """A turn like those of runs on the CPU whose folder for temporary files is `temporary`; released at the end."""
    turn = AlternatingTurn(FileLock(temporary / device_lock(torch.device("cpu")).path.name), alternates=True)
    try:
        yield turn
    finally:
        turn.release()


def waits_of(events: Path) -> int:
    """How often a run has begun and found the device taken."""
    found = EventReader(events).read()
    return sum(event["event"] == "status" and event["message"].startswith("waiting for ") for event in found)

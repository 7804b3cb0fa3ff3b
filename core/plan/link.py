"""How fast the GPUs of a run send to each other: measured once for a card and a number of them, and kept for the next start."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from ..errors import RunError
from ..parallel.world import World
from ..safe_json import as_table
from .kept import read_kept, write_kept
from .probe import device_path, version_of

_BYTES = {"cuda": 128 * 2**20, "cpu": 2**20}  # that a GPU sends to all others, itself among them
_RUNS = 5


def link_of(world: World, device: torch.device, folder: Path) -> float:
    """Bytes per second that each rank sends to the others while it gets as many; 0 with one rank. All ranks call it.

    From `folder` where it is known there, as the first rank reads it; else it is measured, in a tenth of a second.
    """
    if world.size == 1:
        return 0.0
    rate = world.from_first(read_link(folder, device, world.size) if world.is_first else None)
    if not rate:
        rate = min(world.tell(measure_link(device)))
        if world.is_first:
            with suppress(RunError):  # it is measured again then
                _write_link(folder, device, world.size, rate)
    return rate


def measure_link(device: torch.device) -> float:
    """Bytes per second, of an exchange of all ranks with all others. All ranks call it at the same time."""
    size = dist.get_world_size()
    x = torch.zeros(_BYTES[device.type] // size * size, dtype=torch.uint8, device=device)
    found = torch.empty_like(x)
    dist.all_to_all_single(found, x)  # opens the links
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(_RUNS):
        dist.all_to_all_single(found, x)
    _synchronize(device)
    seconds = (time.perf_counter() - start) / _RUNS
    return len(x) * (size - 1) / size / max(seconds, 1e-9)


def read_link(folder: Path, device: torch.device, count: int) -> float:
    """What is known of so many GPUs of this kind; 0 for nothing, or damage."""
    try:
        return float(_rates(folder, device)[str(count)])
    except (KeyError, TypeError, ValueError):
        return 0.0


def _write_link(folder: Path, device: torch.device, count: int, rate: float) -> None:
    rates = {**_rates(folder, device), str(count): rate}
    write_kept(_path(folder, device), version_of(device), {"rates": rates})


def _rates(folder: Path, device: torch.device) -> dict[str, Any]:
    return as_table(read_kept(_path(folder, device), version_of(device)).get("rates"))


def _path(folder: Path, device: torch.device) -> Path:
    path = device_path(folder, device)
    return path.with_name(f"link-{path.name}")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

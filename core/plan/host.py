"""Main memory: how much a run may still take, and how much of that may be pinned.

A container's limit (cgroup v1 and v2, Linux kernel, admin-guide/cgroup-v1/memory and cgroup-v2) counts where it is lower
than what the machine has left: a process that passes it is killed without a word.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..gpu_limit import is_driver_of_windows

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as the largest multiple of a page below 2**63
# Windows, and Linux inside it, let a GPU's driver pin half of the memory ("shared GPU memory").
_WINDOWS_SHARE = 0.5


def total_ram(root: Path = _ROOT) -> int:
    """Bytes of the machine's memory, or the container's limit where that is lower."""
    limits = [limit for limit, _ in _cgroups(root)]
    return min([_machine(root)[0], *limits])


def available_ram(root: Path = _ROOT) -> int:
    """Bytes that can still be taken without swapping: files that are only cached count as free.

    Raises OSError on a system without /proc/meminfo where psutil is not installed. `root` is where /proc and /sys lie.
    """
    left = [max(limit - used, 0) for limit, used in _cgroups(root)]
    return min([_machine(root)[1], *left])


def pinnable_ram(root: Path = _ROOT) -> int:
    """Bytes of `available_ram` that a GPU's driver will page-lock; at most half of all memory under Windows and WSL."""
    available = available_ram(root)
    if is_driver_of_windows():
        return min(available, int(total_ram(root) * _WINDOWS_SHARE))
    return available


class _Idle:
    """What this process waited for, before there was anything to do, and what is no part of a start."""

    seconds = 0.0


def note_idle(seconds: float) -> None:
    """So long the process waited, or did what not every run does before its steps: no part of what a start takes."""
    _Idle.seconds += seconds


def busy_seconds() -> float | None:
    """Since this process was started, without what `note_idle` was told; None where the system does not say."""
    age = process_age()
    return None if age is None else age - _Idle.seconds


def process_age(root: Path = _ROOT) -> float | None:
    """Seconds since this process was started; None where the system does not say."""
    try:
        fields = (root / "proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float((root / "proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _age_by_psutil() if root == _ROOT else None


def _age_by_psutil() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    try:
        return max(0.0, time.time() - psutil.Process().create_time())
    except psutil.Error:
        return None


def private_ram() -> int:
    """Bytes of main memory that only this process has, on a system without /proc; 0 where it does not say."""
    try:
        import psutil
    except ImportError:
        return 0
    try:
        memory = psutil.Process().memory_info()
    except psutil.Error:
        return 0
    return min(memory.rss, getattr(memory, "private", 0))  # `rss` has files, too, `private` what is not in memory


def _machine(root: Path) -> tuple[int, int]:
    """(total, available) bytes, from the kernel where it says so, else through psutil."""
    path = root / "proc" / "meminfo"
    if path.is_file():
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, available
    try:
        import psutil
    except ImportError as error:
        raise OSError("The free memory of this system cannot be read: install psutil.") from error
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) bytes of every limited control group that this process is in; used without cached files.

    Files that were read twice are "active", but the kernel gives them up as well before it kills a process.
    """
    path = root / "proc" / "self" / "cgroup"
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            base, names, files = root / "sys/fs/cgroup", ("memory.max", "memory.current"), "{}_file"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names, files = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_{}_file"
        else:
            continue
        folder = base / group.lstrip("/")
        # Inside a container the path may be the host's, and not there; the container's own group is then the base.
        for place in (folder, *folder.parents):
            if place != base and base not in place.parents:
                break
            yield from _read_group(place, *names, [files.format(state) for state in ("active", "inactive")])


def _read_group(folder: Path, limit_name: str, used_name: str, cached: list[str]) -> Iterator[tuple[int, int]]:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group is not there, or not ours to read
        return
    if limit != "max" and int(limit) < _UNLIMITED:
        yield int(limit), used - sum(int(counts.get(name, 0)) for name in cached)

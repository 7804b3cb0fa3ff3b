"""Holds a process to an amount of main memory, page cache included and without swap.

Linux as root: a control group with a memory limit (kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/memory).
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wan_train.benchmarks.disk import Mount, mounted

GB = 1e9
_PATIENCE = 20  # tries to remove a group, 0.1 s apart: a killed process takes a moment to go


class _Files(NamedTuple):
    """A version's names."""

    limit: str
    used: str
    peak: str
    events: str
    swap: str  # 0 forbids it


_FILES = {
    1: _Files("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "oom_control", "swappiness"),
    2: _Files("max", "current", "peak", "events", "swap.max"),
}


@dataclass(frozen=True)
class MemoryGroup:
    """A control group whose processes have `num_bytes` of main memory in all; `version` 1 or 2 of the kernel's interface."""

    folder: Path
    version: int
    num_bytes: int

    def join(self) -> None:
        """Put the calling process into the group.

        What it has in memory by now, libraries included, stays charged where it was, so the limit becomes less by that.
        MemoryError where that leaves nothing.
        """
        left = self.num_bytes - _resident()
        if left <= 0:
            raise MemoryError(
                f"{self.num_bytes / GB:.1f} GB of main memory do not hold this program itself: hold more."
            )
        self._write(_FILES[self.version].limit, str(left))
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def left(self) -> int:
        """Bytes that are not taken, of the limit."""
        return self._number(_FILES[self.version].limit) - self._number(_FILES[self.version].used)

    @property
    def peak(self) -> int | None:
        """Bytes at the most, the page cache and what was there before included; None where the kernel (before 5.19) does
        not say. Caches grow into what is free, so it tends to the limit."""
        files = _FILES[self.version]
        if not (self.folder / f"memory.{files.peak}").exists():
            return None
        before = self.num_bytes - self._number(files.limit)
        return self._number(files.peak) + before

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel has killed for want of memory."""
        lines = (self.folder / f"memory.{_FILES[self.version].events}").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))

    def close(self) -> None:
        """End what still runs in the group, and remove it."""
        for _ in range(_PATIENCE):
            for process in (self.folder / "cgroup.procs").read_text().split():
                _kill(int(process))
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        print(f"The control group {self.folder} could not be removed: end what runs in it, and remove it by rmdir.")

    def set_up(self) -> None:
        """Write the limit and forbid swapping. OSError if the kernel refuses."""
        files = _FILES[self.version]
        self._write(files.limit, str(self.num_bytes))
        if (self.folder / f"memory.{files.swap}").exists():  # else there is no swap that is counted
            self._write(files.swap, "0")
        if (self.folder / "memory.oom.group").exists():
            self._write("oom.group", "1")  # a process without its compile workers would wait for them

    def _write(self, name: str, text: str) -> None:
        (self.folder / f"memory.{name}").write_text(text)

    def _number(self, name: str) -> int:
        text = (self.folder / f"memory.{name}").read_text().strip()
        return self.num_bytes if text == "max" else int(text)


@contextmanager
def memory_group(num_bytes: int) -> Iterator[MemoryGroup]:
    """A new group, gone at the end. SystemExit with a sentence where this system lets none be made."""
    with _hierarchy() as (mount, version):
        group = _make_below(mount, version, num_bytes)
        try:
            yield group
        finally:
            group.close()


@contextmanager
def _hierarchy() -> Iterator[tuple[Mount, int]]:
    """The groups that govern memory, and their version; mounted for a while where they are not."""
    mounts = mounted()
    found = _find_hierarchy(mounts)
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="cgroup-") as place:
        done = subprocess.run(["mount", "-t", "cgroup2", "none", place], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"The control groups cannot be mounted ({done.stderr.strip()}): --hold-ram needs root.")
        try:
            found = _find_hierarchy([mount for mount in mounted() if mount.place == Path(place)])
            if found is None:
                raise SystemExit("This kernel has no control group for memory: --hold-ram cannot be used.")
            yield found
        finally:
            subprocess.run(["umount", place], check=False)


def _find_hierarchy(mounts: list[Mount]) -> tuple[Mount, int] | None:
    for mount in mounts:
        if mount.kind == "cgroup2" and "memory" in _words(mount.place / "cgroup.controllers"):
            return mount, 2
        if mount.kind == "cgroup" and "memory" in mount.options:
            return mount, 1
    return None


def _make_below(mount: Mount, version: int, num_bytes: int) -> MemoryGroup:
    """A group below this process's own, whose limits then hold too, or below the nearest above it that takes one.

    The second version lets no group with processes in it have limited groups below it, the topmost excepted.
    """
    refused: OSError | None = None
    for above in _own_groups(mount, version):
        group = MemoryGroup(above / f"wan-train-{os.getpid()}", version, num_bytes)
        try:
            if version == 2 and "memory" not in _words(above / "cgroup.subtree_control"):
                (above / "cgroup.subtree_control").write_text("+memory")
            group.folder.mkdir()
        except OSError as error:
            refused = error
            continue
        try:
            group.set_up()
        except OSError as error:
            group.close()
            refused = error
            continue
        return group
    raise SystemExit(
        f"No control group with a limit of main memory can be made below {mount.place} ({refused}): --hold-ram needs root, "
        "and in a container one that may write there."
    )


def _own_groups(mount: Mount, version: int) -> Iterator[Path]:
    """The folder of this process's group and of those above it, as far as they are seen."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(",") if version == 1 else not controllers:
            own = mount.place / os.path.relpath(name, mount.root)
            for folder in (own, *own.parents):
                if folder.is_dir() and (folder == mount.place or mount.place in folder.parents):
                    yield folder


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _resident() -> int:
    """Bytes of this process in main memory, files that it maps included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)

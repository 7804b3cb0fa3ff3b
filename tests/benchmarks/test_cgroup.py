"""A process that is held to an amount of main memory, for real where the kernel lets a group be made, and disks."""

import ctypes
import mmap
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from wan_train.benchmarks.cgroup import MemoryGroup, memory_group
from wan_train.benchmarks.disk import drop_cache, lies_in_memory, read_mounts, read_rate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")

MB = 1 << 20
MOUNTS = r"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 25 0:27 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=134217728k
32 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
35 31 0:32 /docker/7f /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 27 0:33 / /mnt/a\040disk rw - tmpfs none rw
37 27 254:1 / /mnt/a\040disk rw - xfs /dev/vdb rw
"""


def take(group: MemoryGroup, share: float) -> None:
    """`share` of what the group leaves, in a process of its own."""
    group.join()
    num_bytes = int(group.left * share)
    os._exit(0 if len(bytearray(num_bytes)) == num_bytes else 1)


def run_in(group: MemoryGroup, share: float) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=take, args=(group, share))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture
def group():
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        held = memory_group(before + 100 * MB)
        opened = held.__enter__()
    except SystemExit as error:
        pytest.skip(str(error))
    yield opened
    held.__exit__(None, None, None)
    assert not opened.folder.exists()


def test_a_process_that_takes_more_is_killed(group):
    assert run_in(group, 0.8) == 0
    assert group.oom_kills == 0
    assert run_in(group, 1.5) == -9
    assert group.oom_kills == 1
    assert group.peak is None or 0.9 * group.num_bytes < group.peak <= group.num_bytes


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"memory.{name.replace('__', '.')}").write_text(text)


def test_the_second_version_is_read(tmp_path):
    group = MemoryGroup(tmp_path, 2, 1000)
    put(tmp_path, max="max\n", swap__max="max\n", oom__group="0\n", current="10\n", events="oom 3\noom_kill 2\n")
    group.set_up()
    assert (group.left, group.oom_kills, group.peak) == (990, 2, None)
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert (tmp_path / "memory.oom.group").read_text() == "1"
    put(tmp_path, max="900\n", peak="850\n")  # 100 were there before
    assert (group.left, group.peak) == (890, 950)


def test_a_process_that_is_too_large_already_is_refused(tmp_path):
    with pytest.raises(MemoryError, match="hold more"):
        MemoryGroup(tmp_path, 2, 1000).join()


def test_mounts_are_read():
    mounts = read_mounts(MOUNTS)
    assert (mounts[2].kind, mounts[2].place) == ("cgroup2", Path("/sys/fs/cgroup"))
    assert (mounts[3].root, mounts[3].options) == ("/docker/7f", ("rw", "memory"))
    assert lies_in_memory(Path("/dev/shm/wan-speed"), mounts)
    assert not lies_in_memory(Path("/dev/shmem"), mounts)
    assert not lies_in_memory(Path("/mnt/a disk"), mounts)  # the later mount covers the first


def is_cached(path: Path) -> bool:
    """Whether the first page of a file is in main memory. OSError if the system does not say."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, access=mmap.ACCESS_READ) as mapped:
        pages = np.frombuffer(mapped, np.uint8)
        told = ctypes.c_ubyte()
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(told)
        )
        del pages
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return bool(told.value & 1)


def test_files_are_read_from_the_disk_again(tmp_path):
    path = tmp_path / "part" / "file"
    path.parent.mkdir()
    path.write_bytes(os.urandom(MB))
    try:
        assert is_cached(path)
    except OSError:
        pytest.skip("this file system does not say what is cached")
    drop_cache(tmp_path)
    assert not is_cached(path)
    assert read_rate(path, 10 * MB) > 0
    assert is_cached(path)

"""Main memory of the size asked for, of one process and of several."""

import mmap
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from wan_train.core.pinned import HostBuffer, SharedBuffer, Ticket

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

READ = "import os, sys, mmap; m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])); m[0] += 1; print(m[5])"


def open_files():
    """Those of such memory: what other tests have left in this process, threads too, has others that come and go."""
    found = set()
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found |= {file.name} if str(file.readlink()).startswith("/memfd:wantrain") else set()
    return found


def test_pages_are_whole_and_bytes_are_as_asked():
    for num_bytes in (1, mmap.PAGESIZE, mmap.PAGESIZE + 1):
        for made in (HostBuffer(num_bytes, pinned=False), SharedBuffer.create(num_bytes, pinned=False)):
            assert made.bytes.numel() == num_bytes
            assert made.bytes.data_ptr() % mmap.PAGESIZE == 0


def test_another_process_reads_and_writes_the_same_memory():
    made = SharedBuffer.create(100, pinned=False)
    made.bytes.copy_(torch.arange(100, dtype=torch.uint8))
    found = subprocess.run(
        [sys.executable, "-c", READ, made.ticket.place, "4096"], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "5"
    assert made.bytes[0] == 1
    beside = SharedBuffer.attach(made.ticket, pinned=False)
    beside.bytes[7] = 200
    assert made.bytes[7] == 200


def test_memory_outlives_its_first_owner_and_leaves_nothing_open():
    before = open_files()
    made = SharedBuffer.create(100, pinned=False)
    assert open_files() > before
    made.bytes.fill_(9)
    beside = SharedBuffer.attach(made.ticket, pinned=False)
    made.settle()
    made.settle()  # once more does nothing
    del made
    assert beside.bytes.sum() == 900
    del beside
    assert open_files() <= before
    assert not list(Path("/dev/shm").glob("*wantrain*"))


def test_what_is_not_there_is_an_os_error():
    made = SharedBuffer.create(100, pinned=False)
    made.settle()
    with pytest.raises(OSError, match="No such file"):
        SharedBuffer.attach(Ticket(made.ticket.place, 100), pinned=False)


def test_a_system_without_such_memory_says_so(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="memfd_create"):
        SharedBuffer.create(100, pinned=False)


def test_more_than_there_is_is_an_os_error():
    before = open_files()
    with pytest.raises(OSError, match="could not be had"):
        SharedBuffer.create(1 << 62, pinned=False)
    assert open_files() <= before

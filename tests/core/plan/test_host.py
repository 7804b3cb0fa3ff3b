"""Free main memory: the kernel's word, a container's limit, what may be pinned."""

import platform
import sys

import pytest
from wan_train.core.plan.host import available_ram, pinnable_ram, total_ram

GB = 10**9


@pytest.fixture
def machine(tmp_path):
    """A root with 64 GB, of which 48 are available; `machine(path, text)` adds a file."""

    def write(path, text):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    write(
        "proc/meminfo", "MemTotal:       64000000 kB\nMemFree:  1 kB\nMemAvailable:   48000000 kB\nHugePages_Total: 0\n"
    )
    write.root = tmp_path
    return write


def put_group(machine, folder, limit, used, cached):
    machine(f"{folder}/memory.max", f"{limit}\n")
    machine(f"{folder}/memory.current", f"{used}\n")
    machine(f"{folder}/memory.stat", f"anon 5\ninactive_file {cached // 3}\nactive_file {cached - cached // 3}\n")


def test_kernel_says_what_is_available(machine):
    assert available_ram(machine.root) == 48000000 * 1024
    assert total_ram(machine.root) == 64000000 * 1024


def test_a_container_limit_counts_without_cached_files(machine):
    machine("proc/self/cgroup", "0::/user/job\n")
    put_group(machine, "sys/fs/cgroup/user/job", "max", 9 * GB, 0)
    assert available_ram(machine.root) == 48000000 * 1024
    put_group(machine, "sys/fs/cgroup/user", 10 * GB, 8 * GB, 3 * GB)  # the parent's limit holds too
    assert available_ram(machine.root) == 5 * GB
    assert total_ram(machine.root) == 10 * GB
    put_group(machine, "sys/fs/cgroup", 7 * GB, 8 * GB, 0)
    assert available_ram(machine.root) == 0


def test_inside_a_container_the_own_group_is_the_root(machine):
    machine("proc/self/cgroup", "0::/docker/7f3a\n")
    put_group(machine, "sys/fs/cgroup", 6 * GB, 1 * GB, 0)
    assert available_ram(machine.root) == 5 * GB


def test_first_version_of_groups(machine):
    machine("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n1:name=systemd:/y\n")
    for name, text in (
        ("limit_in_bytes", str(4 * GB)), ("usage_in_bytes", str(3 * GB)),
        ("stat", f"cache 1\ninactive_file 3\ntotal_inactive_file {GB // 4}\ntotal_active_file {GB // 4 * 3}\n"),
    ):  # fmt: skip
        machine(f"sys/fs/cgroup/memory/job/memory.{name}", text)
    assert available_ram(machine.root) == 2 * GB
    machine("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712")  # no limit
    assert available_ram(machine.root) == 48000000 * 1024


def test_this_machine_has_memory():
    assert 0 < available_ram() <= total_ram()
    assert 0 < pinnable_ram() <= total_ram()  # what is available is another number a moment later


def test_half_of_the_memory_may_be_pinned_under_windows(machine, monkeypatch):
    assert pinnable_ram(machine.root) == available_ram(machine.root)
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert pinnable_ram(machine.root) == 32000000 * 1024


def test_without_the_kernels_file_psutil_is_asked(tmp_path, monkeypatch):
    psutil = pytest.importorskip("psutil")
    assert total_ram(tmp_path) == psutil.virtual_memory().total
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(OSError, match="install psutil"):
        available_ram(tmp_path)

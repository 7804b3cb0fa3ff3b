"""What a process may take of a GPU: less where its driver would give main memory instead of saying that there is no more."""

import platform
from types import SimpleNamespace

import pytest
import torch
from wan_train.core import gpu_limit
from wan_train.core.gpu_limit import lift, limit

GB = 2**30
GPU = torch.device("cuda:0")


@pytest.fixture
def fractions(monkeypatch):
    """Those that the allocator is told, of a GPU of 16 GB with 9 free, of which this process holds 2 more."""
    found = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * GB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9 * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: found.append(16 * share))
    return found


def test_what_tensors_may_still_take(fractions, monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GB)
    for share, free in ((1.0, 10), (0.5, 7), (0.1, 1)):  # of 16 GB, 9 are free, 2 held and 1 of them is not in use
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, share=share: share)
        assert gpu_limit.room(GPU) == free * GB
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")
    assert gpu_limit.room(GPU) == gpu_limit.room(torch.device("cpu")) == 0


def under(monkeypatch, system, release):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)


def test_on_linux_a_budget_alone_limits(fractions, monkeypatch):
    under(monkeypatch, "Linux", "6.8.0-45-generic")
    limit(GPU)
    limit(GPU, 12 * GB)
    limit(GPU, 40 * GB)
    lift(GPU)
    assert fractions == [16, 12, 16, 16]


@pytest.mark.parametrize("system", [("Windows", "11"), ("Linux", "5.15.167.4-microsoft-standard-WSL2")])
def test_under_windows_what_is_free_limits_too(fractions, monkeypatch, system):
    under(monkeypatch, *system)
    limit(GPU)
    limit(GPU, 12 * GB)
    limit(GPU, 6 * GB)
    lift(GPU)
    assert fractions == [11, 11, 6, 16]


def test_a_cpu_has_no_limit(fractions, monkeypatch):
    under(monkeypatch, "Windows", "11")
    limit(torch.device("cpu"))
    lift(torch.device("cpu"))
    assert fractions == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_that_memory_is_out(monkeypatch):
    """Of memory that is there, but not free, as Windows tells it."""
    monkeypatch.setattr(gpu_limit, "is_driver_of_windows", lambda: True)
    total = torch.cuda.mem_get_info(GPU)[1]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GB, total))
    held = torch.empty(GB // 4, dtype=torch.uint8, device=GPU)
    limit(GPU)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * GB, dtype=torch.uint8, device=GPU)
        del held
        torch.empty(GB, dtype=torch.uint8, device=GPU)
    finally:
        lift(GPU)
    torch.empty(2 * GB, dtype=torch.uint8, device=GPU)

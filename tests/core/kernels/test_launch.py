"""A kernel is launched directly the second time, and by Triton's own way where that is not possible."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")
from wan_train.core.kernels import launch as room

GRID = (1, 1, 1)


class Kernel:
    """In the place of a Triton kernel, and of what it is compiled to."""

    def __init__(self, takes=3):
        self.calls, self.takes, self.compiled = [], takes, 0

    def warmup(self, *_, grid, **__):
        assert grid == GRID
        self.compiled += 1

    def __getitem__(self, grid):
        def run(*args, num_warps):
            self.calls.append("triton")
            return self

        def again(*args, stream):
            if len(args) != self.takes:
                raise TypeError("takes other arguments")
            self.calls.append("direct")

        return lambda *args, **options: (again if "stream" in options else run)(*args, **options)


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(room, "_compiled", {})
    monkeypatch.setattr(room, "_direct", True)
    monkeypatch.setattr(room, "_get_stream", lambda _: None)


def run(kernel, *args, constants=(5,)):
    room.launch(kernel, GRID, args, constants, 4)


@pytest.mark.usefixtures("fresh")
def test_what_a_kernel_is_compiled_for_is_compiled_once():
    kernel, x = Kernel(), torch.empty(64)
    for _ in range(3):
        run(kernel, x, 7)
    assert kernel.calls == ["triton", "direct", "direct"]
    run(kernel, x.double(), 7)
    run(kernel, x, 7, constants=(6,))
    assert kernel.calls[3:] == ["triton", "triton"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("args", [(torch.empty(64)[1:], 7), (torch.empty(64), 2**31)], ids=["address", "number"])
def test_what_triton_compiles_for_otherwise_goes_its_way(args):
    kernel = Kernel()
    run(kernel, torch.empty(64), 7)
    run(kernel, *args)
    assert kernel.calls == ["triton", "triton"]


@pytest.mark.usefixtures("fresh")
def test_another_triton():
    kernel, x = Kernel(takes=2), torch.empty(64)
    for _ in range(3):
        run(kernel, x, 7)
    assert kernel.calls == ["triton"] * 3
    compiled = kernel.compiled
    for _ in range(3):
        run(kernel, x, 7)
    assert (kernel.calls, kernel.compiled) == (["triton"] * 6, compiled)  # nothing is looked up in every launch


@pytest.mark.usefixtures("fresh")
def test_threads_compile_side_by_side_and_launch_for_the_first_time_one_by_one():
    """Triton loads a module at a first launch; two threads that load one at once may get each other's."""
    compiling, launching, met = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=1), []

    class Slow(Kernel):
        def warmup(self, *_, **__):
            compiling.wait()  # of which a lock would keep the other thread away

        def __getitem__(self, grid):
            launch = super().__getitem__(grid)

            def run(*args, **options):
                with contextlib.suppress(threading.BrokenBarrierError):  # nobody came
                    launching.wait()
                    met.append(self)
                return launch(*args, **options)

            return run

    kernels = Slow(), Slow()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda kernel: run(kernel, torch.empty(64), 7), kernels))
    assert met == []
    assert [kernel.calls for kernel in kernels] == [["triton"], ["triton"]]

"""One training step under torch's profiler, summed by what its kernels are for."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

TOP = 12

# In this order: the first that matches. Attention first, since its kernels are made with the GEMMs' libraries.
CLASSES = (
    ("attention", re.compile(r"flash|fmha|sdpa|attention", re.I)),
    ("copy", re.compile(r"^Mem(cpy|set)", re.I)),
    ("compiled", re.compile(r"^triton_")),
    ("gemm", re.compile(r"gemm|nvjet|cutlass|xmma|wgmma|splitk|cublas|_scaled_mm", re.I)),
    ("optimizer", re.compile(r"multi_tensor|fusedadam|lpnorm", re.I)),
)


class Kernel(NamedTuple):
    """One piece of work of the GPU; times in microseconds."""

    name: str
    start: float
    end: float


def kernel_class(name: str) -> str:
    """attention, gemm, copy, optimizer, "compiled" (inductor's fused element-wise code), else "elementwise"."""
    return next((label for label, pattern in CLASSES if pattern.search(name)), "elementwise")


def busy_time(kernels: Iterable[Kernel]) -> float:
    """Microseconds in which at least one kernel ran."""
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        if kernel.end > end:
            busy += kernel.end - max(kernel.start, end)
            end = kernel.end
    return busy


def summarize(kernels: list[Kernel]) -> dict:
    """Seconds by class, of all (copies beside the computation count in both), and the kernels that take longest."""
    by_class: defaultdict[str, float] = defaultdict(float)
    by_name: Counter[str] = Counter()
    counts = Counter(kernel.name for kernel in kernels)
    for kernel in kernels:
        by_class[kernel_class(kernel.name)] += kernel.end - kernel.start
        by_name[kernel.name] += kernel.end - kernel.start  # type: ignore[assignment]
    span = max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)
    busy = busy_time(kernels)
    return {
        "busy_s": _seconds(busy),
        "idle_s": _seconds(span - busy),
        "classes_s": {label: _seconds(time) for label, time in sorted(by_class.items(), key=lambda item: -item[1])},
        "kernels": len(kernels),
        "longest": [[name[:100], counts[name], _seconds(time)] for name, time in by_name.most_common(TOP)],
    }


def profile_step(step: Callable[[], object]) -> dict | None:
    """`summarize` of the kernels of one call of `step`; None without a GPU. The tracing slows the host, not the kernels."""
    if not torch.cuda.is_available():
        step()
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    assert trace.profiler is not None  # the public events say the same, and take seconds to make
    results = trace.profiler.kineto_results
    assert results is not None
    kernels = [
        Kernel(event.name(), event.start_ns() / 1000, (event.start_ns() + event.duration_ns()) / 1000)
        for event in results.events()
        if str(event.device_type()).endswith("CUDA") and not event.is_user_annotation()
    ]
    return summarize(kernels) if kernels else None


def _seconds(microseconds: float) -> float:
    return round(microseconds / 1e6, 5)

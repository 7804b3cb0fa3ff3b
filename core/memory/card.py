"""What a device can do: memory that is free, rates measured in under a second, and how far predictions were off before."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..disk import write_atomic
from .host import available_ram, pinnable_ram
from .master import MasterKind
from .precision.formats import native_dtype
from .precision.fp8 import quantize_rows
from .precision.fp8_compute import find_kernel, multiply

DISK_RATE = 2e9  # bytes/s of a mapped file: an NVMe disk; what is still in main memory comes faster
_TIMED_RUNS = 3
_FITS = (0.5, 3.0)  # factors outside are a measurement of something else


@dataclass(frozen=True, kw_only=True)
class Card:
    """A device and the main memory beside it. Rates per second; bytes where nothing else is said."""

    name: str
    free: int  # memory that this process may still take, with what it holds already
    total: int
    free_ram: int
    pinnable_ram: int
    matmul: float  # FLOP of products in the 16-bit dtype that suits the device
    matmul_fp32: float
    attention: float  # FLOP of forward and backward
    bandwidth: float  # bytes read and written on the device
    to_device: float  # from pinned memory
    staged: float  # from pageable memory, through a pinned buffer
    matmul_fp8: float = 0.0  # 0: it cannot
    launch_s: float = 5e-6  # seconds between two operators that do nothing

    def matmul_rate(self, precision: str, element_size: int) -> float:
        """FLOP per second of a block's linears."""
        if precision == "fp8_compute" and self.matmul_fp8:
            return self.matmul_fp8
        return self.matmul if element_size < 4 else self.matmul_fp32

    def copy_rate(self, kind: MasterKind) -> float:
        """Bytes per second at which streamed weights arrive."""
        if kind == "mapped":
            return min(DISK_RATE, self.staged)
        return self.to_device if kind == "pinned" else self.staged


@dataclass(frozen=True)
class Fit:
    """Measured over predicted, of one device: of what a step takes beside the weights, and of its time."""

    memory: float = 1.0
    time: float = 1.0


def measure_card(device: torch.device) -> Card:
    """The rates and the free memory of `device` now. Takes less than a second and, on a GPU, about 0.3 GB for a moment."""
    cuda = device.type == "cuda"
    dtype = native_dtype(device)
    size = 4096 if cuda else 256
    free_ram = available_ram()
    with torch.no_grad():
        square = torch.ones(size, size, dtype=dtype, device=device)
        flop = 2 * size**3
        matmul = flop / _time(lambda: square @ square, device)
        single = torch.ones(size // 2, size // 2, device=device)
        matmul_fp32 = flop / 8 / _time(lambda: single @ single, device)
        target = torch.empty_like(square)
        bandwidth = 2 * square.nbytes / _time(lambda: target.copy_(square), device)
        fp8 = flop / _time(_fp8_product(square), device) if cuda and find_kernel(device) else 0.0
        tiny = torch.ones(8, device=device)
        launch = _time(lambda: [tiny.add_(1) for _ in range(100)], device) / 100
    to_device, staged = _copy_rates(device, 64 * 2**20 if cuda else 2**20)
    free, total = _device_memory(device, free_ram)
    return Card(
        name=torch.cuda.get_device_name(device) if cuda else "cpu",
        free=free,
        total=total,
        free_ram=free_ram,
        pinnable_ram=pinnable_ram() if cuda else free_ram,
        matmul=matmul,
        matmul_fp32=matmul_fp32,
        attention=_attention_rate(device, dtype, tokens=4096 if cuda else 256),
        bandwidth=bandwidth,
        to_device=to_device,
        staged=staged,
        matmul_fp8=fp8,
        launch_s=launch,
    )


def read_fit(folder: Path, card: Card, kind: str) -> Fit:
    """What was learnt of `card` in runs of this `kind` (see `fit_kind`); no correction where there is nothing, or damage."""
    try:
        found = json.loads(_fit_path(folder, card).read_text(encoding="utf-8"))[kind]
        fit = Fit(float(found["memory"]), float(found["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Fit()
    return fit if all(_FITS[0] <= factor <= _FITS[1] for factor in (fit.memory, fit.time)) else Fit()


def write_fit(folder: Path, card: Card, kind: str, fit: Fit) -> None:
    """Keep `fit` for the next run. RunError if the folder cannot be written."""
    path = _fit_path(folder, card)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = {**(known if isinstance(known, dict) else {}), kind: asdict(fit)}
    content = json.dumps(known, indent=1).encode()
    write_atomic(path, lambda file: file.write(content))


def refit(fit: Fit, *, memory: float | None = None, seconds: float | None = None) -> Fit:
    """`fit`, in a run that was predicted with it, corrected by the ratios measured / predicted; within limits."""
    low, high = _FITS
    if memory is not None:
        fit = replace(fit, memory=min(max(fit.memory * memory, low), high))
    if seconds is not None:
        fit = replace(fit, time=min(max(fit.time * seconds, low), high))
    return fit


def _fit_path(folder: Path, card: Card) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")
    return folder / f"planner-{name}.json"


def _device_memory(device: torch.device, free_ram: int) -> tuple[int, int]:
    """(free, total): what torch's allocator has cached counts as free, and so does what this process uses."""
    if device.type != "cuda":
        return free_ram, free_ram
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), total


def _fp8_product(values: torch.Tensor) -> Callable[[], object]:
    kernel = find_kernel(values.device)
    assert kernel is not None
    left, scale = quantize_rows(values)
    return lambda: multiply(left, left.t(), scale, scale.t(), kernel=kernel, fast=True)


def _attention_rate(device: torch.device, dtype: torch.dtype, *, tokens: int) -> float:
    heads, width = 8, 128
    q = torch.randn(1, heads, tokens, width, dtype=dtype, device=device, requires_grad=True)
    grad = torch.ones_like(q)

    def run() -> None:
        torch.autograd.grad(scaled_dot_product_attention(q, q, q), q, grad)

    with torch.enable_grad():
        seconds = _time(run, device)
    return 3.5 * 4 * tokens**2 * heads * width / seconds


def _copy_rates(device: torch.device, num_bytes: int) -> tuple[float, float]:
    """(pinned, staged) bytes per second to the device; staged is bound by a copy within main memory as well."""
    source = torch.zeros(num_bytes, dtype=torch.uint8)
    beside = torch.empty_like(source)
    in_ram = num_bytes / _time(lambda: beside.copy_(source), torch.device("cpu"))
    if device.type != "cuda":
        return in_ram, in_ram
    pinned, target = source.pin_memory(), torch.empty(num_bytes, dtype=torch.uint8, device=device)
    rate = num_bytes / _time(lambda: target.copy_(pinned, non_blocking=True), device)
    return rate, min(rate, in_ram)


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs after a first."""
    seconds = []
    for _ in range(1 + _TIMED_RUNS):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return max(min(seconds[1:]), 1e-9)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

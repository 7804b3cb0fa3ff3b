"""What a device can do: memory that is free, rates measured in about a second, and how far predictions were off before."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import ConfigError
from ..memory.attention import Attend, AttentionShape, choose_attention, sdpa_attention, time_attention
from ..memory.precision import native_dtype, precision_kind
from ..memory.precisions.fp8 import quantize_rows
from ..memory.precisions.fp8_compute import find_kernel, multiply
from ..safe_json import as_table
from ..settings.memory import MasterKind
from .host import available_ram, pinnable_ram, private_ram
from .kept import read_kept, write_kept

LINK_RATE = 12e9  # bytes/s that a GPU sends to others where it was not measured: over PCIe 4.0, by way of main memory
LINK_LATENCY_S = 40e-6  # until what is sent to other GPUs begins to arrive
DISK_RATE = 2e9  # bytes/s of a mapped file: an NVMe disk; what is still in main memory comes faster
_TIMED_S, _TIMED_RUNS = 0.04, 100  # a rate is taken over so many seconds, or so many runs
_DIVISORS = (1, 4, 16)  # of the measured sizes, one after another until they fit
_FITS = (0.5, 3.0)  # factors outside are a measurement of something else
_CORRECTIONS = "corrections"

RATES = ("matmul", "matmul_fp32", "bandwidth", "to_device", "staged", "matmul_fp8", "launch_s")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A device and the main memory beside it. Rates per second; bytes where nothing else is said."""

    name: str
    free: int  # memory that this process may still take, with what it holds already
    total: int
    free_ram: int  # as `free`
    pinnable_ram: int
    matmul: float  # FLOP of products in the 16-bit dtype that suits the device
    matmul_fp32: float
    attention: float  # FLOP of forward and backward
    bandwidth: float  # bytes read and written on the device
    to_device: float  # from pinned memory
    staged: float  # from pageable memory, through a pinned buffer
    matmul_fp8: float = 0.0  # 0: it cannot
    launch_s: float = 5e-6  # seconds between two operators that do nothing
    overhead: int = 0  # what this process takes beside tensors; `free` is without it
    link: float = 0.0  # bytes that it sends to the run's other GPUs, while it gets as many from them; 0: not measured

    def matmul_rate(self, precision: str, element_size: int) -> float:
        """FLOP per second of a block's linears."""
        if self.matmul_fp8 and precision_kind(precision).multiplies_in_fp8:
            return self.matmul_fp8
        return self.matmul if element_size < 4 else self.matmul_fp32

    @property
    def link_rate(self) -> float:
        """Bytes per second between the run's GPUs, measured or assumed."""
        return self.link or LINK_RATE

    def copy_rate(self, kind: MasterKind) -> float:
        """Bytes per second at which streamed weights arrive."""
        if kind == "mapped":
            return min(DISK_RATE, self.staged)
        return self.to_device if kind == "pinned" else self.staged


def common_card(cards: Sequence[Card], sharing: int) -> Card:
    """What each of these cards can do, and has free, for a plan that is to suit all of them; the first one's name.

    `sharing`: how many processes divide the main memory of a machine among them.
    """
    if len(cards) == 1:
        return cards[0]
    least = {rate: min(getattr(card, rate) for card in cards) for rate in RATES if rate != "launch_s"}
    return replace(
        cards[0],
        **least,
        attention=min(card.attention for card in cards),
        launch_s=max(card.launch_s for card in cards),
        overhead=max(card.overhead for card in cards),
        free=min(card.free for card in cards),
        total=min(card.total for card in cards),
        free_ram=min(card.free_ram for card in cards) // sharing,
        pinnable_ram=min(card.pinnable_ram for card in cards) // sharing,
    )


@dataclass(frozen=True)
class Correction:
    """How far predictions were off on one device: measured divided by predicted, for memory beside the weights and for time."""

    memory: float = 1.0
    time: float = 1.0


def measure_card(device: torch.device, attention: str = "auto") -> Card:
    """The rates and the free memory of `device` now. Takes about a second and, on a GPU, 0.6 GB for a moment.

    It takes 0.8 GB of main memory then, too. Where that much of the GPU's is not free, it measures with smaller sizes, and
    the rates may come out a little lower.
    `attention`: the kind that will be used, as `choose_attention` knows it, or "default". Products have the sizes of a 14B
    model's feed-forward part and random factors: a GPU's clock is lower in large products, and higher in those of ones.
    """
    rates = measure_rates(device)
    shape = _attention_shape(device, 1)
    return card_of(device, {**rates, "attention": attention_rate(_attention(attention, shape), device)})


def card_of(device: torch.device, rates: Mapping[str, float]) -> Card:
    """`device` with rates that are known, and the memory that is free now."""
    free, total, free_ram, pinnable = _free_memory(device)
    return Card(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        free=free,
        total=total,
        free_ram=free_ram,
        pinnable_ram=pinnable,
        **rates,  # type: ignore[arg-type]
    )


def measure_rates(device: torch.device) -> dict[str, float]:
    """Card's rates by name, all but that of attention."""
    return _in_what_is_free(lambda divisor: _rates(device, divisor))


def attention_rate(attend: Attend, device: torch.device) -> float:
    """FLOP per second of forward and backward."""

    def measure(divisor: int) -> float:
        shape = _attention_shape(device, divisor)
        return 3.5 * 4 * shape.tokens**2 * shape.num_heads * shape.head_dim / (time_attention(attend, shape) / 1000)

    return _in_what_is_free(measure)


def _attention_shape(device: torch.device, divisor: int) -> AttentionShape:
    sizes = (8192, 16 // divisor, 128) if device.type == "cuda" else (256, 8, 128)
    return AttentionShape(*sizes, dtype=native_dtype(device), device=device)


def _in_what_is_free(measure: Callable[[int], T]) -> T:
    """What `measure` returns for the first divisor of the measured sizes that the device has room for."""
    for divisor in _DIVISORS[:-1]:
        try:
            return measure(divisor)
        except torch.OutOfMemoryError:
            pass  # what it held is free outside of this clause
        torch.cuda.empty_cache()
    return measure(_DIVISORS[-1])


def _rates(device: torch.device, divisor: int) -> dict[str, float]:
    """Card's rates, by name; `divisor` of the sizes that are measured on a GPU."""
    cuda = device.type == "cuda"
    dtype = native_dtype(device)
    with torch.no_grad():
        matmul, matmul_fp32, matmul_fp8 = _product_rates(device, dtype, divisor)
        num_bytes = 256 * 2**20 // divisor if cuda else 2**20  # more than the GPU's caches and a processor's hold
        bandwidth = _bandwidth(device, num_bytes)
        tiny = torch.ones(8, device=device)
        launch = _time(lambda: [tiny.add_(1) for _ in range(100)], device) / 100
    to_device, staged = _copy_rates(device, num_bytes)
    return {
        "matmul": matmul,
        "matmul_fp32": matmul_fp32,
        "bandwidth": bandwidth,
        "to_device": to_device,
        "staged": staged,
        "matmul_fp8": matmul_fp8,
        "launch_s": launch,
    }


def measure_free(card: Card, device: torch.device) -> Card:
    """`card`, which is `device`, with the memory that is free now. OSError on a system that does not say."""
    free, total, free_ram, pinnable = _free_memory(device)
    return replace(card, free=free, total=total, free_ram=free_ram, pinnable_ram=pinnable)


def read_correction(folder: Path, card: Card, kind: str, version: str) -> Correction:
    """What was learnt of `card` in runs of this `kind` (see `correction_kind`); none of another `version`, or damaged."""
    try:
        found = as_table(read_kept(learnt_path(folder, card), version).get(_CORRECTIONS))[kind]
        correction = Correction(float(found["memory"]), float(found["time"]))
    except (ValueError, KeyError, TypeError):
        return Correction()
    return (
        correction
        if all(_FITS[0] <= factor <= _FITS[1] for factor in (correction.memory, correction.time))
        else Correction()
    )


def write_correction(folder: Path, card: Card, kind: str, version: str, correction: Correction) -> None:
    """Keep `correction` for the next run. RunError if the folder cannot be written."""
    path = learnt_path(folder, card)
    known = as_table(read_kept(path, version).get(_CORRECTIONS))
    write_kept(path, version, {_CORRECTIONS: {**known, kind: asdict(correction)}})


def corrected(correction: Correction, *, memory: float | None = None, seconds: float | None = None) -> Correction:
    """`correction`, in a run that was predicted with it, corrected by the ratios measured / predicted; within limits."""
    low, high = _FITS
    if memory is not None:
        correction = replace(correction, memory=min(max(correction.memory * memory, low), high))
    if seconds is not None:
        correction = replace(correction, time=min(max(correction.time * seconds, low), high))
    return correction


def learnt_path(folder: Path, card: Card) -> Path:
    """Where what is learnt of a card is kept."""
    name = re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")
    return folder / f"planner-{name}.json"


def _free_memory(device: torch.device) -> tuple[int, int, int, int]:
    """Card's free, total, free_ram, pinnable_ram: what torch's allocator and this process hold counts as free."""
    own = _own_ram()
    free_ram = available_ram() + own
    if device.type != "cuda":
        return free_ram, free_ram, free_ram, free_ram
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), total, free_ram, min(free_ram, pinnable_ram() + own)


def _own_ram() -> int:
    """Bytes of main memory that this process holds, files left out; 0 where the system does not say."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return private_ram()
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _product_rates(device: torch.device, dtype: torch.dtype, divisor: int) -> tuple[float, float, float]:
    """FLOP per second in `dtype`, in fp32 and in fp8, 0 where there is none."""
    cuda = device.type == "cuda"
    rows, inner, outer = (8192 // divisor, 5120, 13824 // divisor) if cuda else (256, 256, 256)
    side = min(inner, 2048)
    square = torch.randn(side, side, device=device)
    matmul_fp32 = 2 * side**3 / _time(lambda: square @ square, device)
    x, weight = (torch.randn(size, inner, device=device, dtype=dtype) for size in (rows, outer))
    flop = 2 * rows * inner * outer
    matmul = flop / _time(lambda: x @ weight.t(), device)
    fp8 = flop / _time(_fp8_product(x, weight), device) if cuda and find_kernel(device) else 0.0
    return matmul, matmul_fp32, fp8


def _fp8_product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    """x [M, K] times weight [N, K]."""
    kernel = find_kernel(x.device)
    assert kernel is not None
    left, left_scale = quantize_rows(x)
    right, right_scale = quantize_rows(weight)
    return lambda: multiply(left, right.t(), left_scale, right_scale.t(), kernel=kernel, fast=True)


def _attention(name: str, shape: AttentionShape) -> Attend:
    """The kind that will be used; PyTorch's own where that cannot be, which is told when it is put on the model."""
    if name == "default" or shape.device.type != "cuda":
        return sdpa_attention(None)
    try:
        return choose_attention(name, shape).attend
    except ConfigError:
        return sdpa_attention(None)


def _bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of the device's memory, read and written."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _time(lambda: target.copy_(source), device)


def _copy_rates(device: torch.device, num_bytes: int) -> tuple[float, float]:
    """(pinned, staged) bytes per second to the device; staged is bound by a copy within main memory as well."""
    source = torch.ones(num_bytes, dtype=torch.uint8)  # zeros could all be the same page
    beside = torch.empty_like(source)
    in_ram = num_bytes / _time(lambda: beside.copy_(source), torch.device("cpu"))
    if device.type != "cuda":
        return in_ram, in_ram
    pinned, target = source.pin_memory(), torch.empty(num_bytes, dtype=torch.uint8, device=device)
    rate = num_bytes / _time(lambda: target.copy_(pinned, non_blocking=True), device)
    return rate, min(rate, in_ram)


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the mean of some after a first."""
    run()
    once = _time_of(run, device, 1)
    return _time_of(run, device, int(min(max(_TIMED_S / once, 1), _TIMED_RUNS)))


def _time_of(run: Callable[[], object], device: torch.device, count: int) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    _synchronize(device)
    return max(time.perf_counter() - start, 1e-9) / count


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What the card can do at the shapes of a step, measured, and the least time a step could take with that.

Legend: L video tokens, T text tokens, D width, F width of the feed-forward. One multiply-add counts as 2 FLOP.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from wan_train.core.errors import ConfigError
from wan_train.core.memory.attention import Attend, AttentionShape, candidates, choose_attention
from wan_train.core.memory.precisions.fp8_compute import find_kernel, multiply
from wan_train.core.wan.config import WanConfig

HEAT = (
    3.0  # seconds of work before anything is measured: a card that is cold keeps a clock up that it soon has to leave
)
BURST = 0.1  # seconds of one burst of calls
BURSTS = 5
COPY_BYTES = 1 << 30
QUEUED = 32  # calls that wait in the device's queue, or in one graph
LAUNCHING = 0.9  # share of the time above which the host's launching is what was timed
FUSED_WIDTHS = 21  # reads and writes of [L, D] in one pass of a block whose element-wise work is fully fused
FUSED_FFN_WIDTHS = 2  # the same of [L, F]
FUSED_PASSES = 3.5  # forward, recompute, and a backward that reads somewhat more

Rates = dict[str, dict[str, float]]  # name -> {"s", "tflops" or "gb_s"}


@dataclass(frozen=True)
class Work:
    """What a step does, as far as its floor depends on it."""

    config: WanConfig
    tokens: int
    products: str  # "bf16" or "fp8"
    checkpointing: bool
    keep_attention: int  # blocks
    keep_linears: int = 0  # blocks


def measure_ceilings(config: WanConfig, tokens: int, *, fp8: bool) -> Rates:
    """All rates that a step of `tokens` tokens needs. A rate that this device has not is left out."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    rates: Rates = {}
    _heat(device)
    for inner, outer in sorted(set(_linear_sizes(config))):
        rates |= _matmul_rates(tokens, inner, outer, dtype, device, fp8=fp8)
    heads = config.num_heads, config.dim // config.num_heads
    for keys in (tokens, config.text_len):
        rates |= _attention_rates(AttentionShape(tokens, *heads, dtype, device), keys)
    return rates


def measure_copies() -> Rates:
    """GB/s: read and write within the device's memory, and from pinned main memory to it."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    size = COPY_BYTES if device.type == "cuda" else 1 << 20
    here, there = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    rates: Rates = {}
    _add(rates, "device to device", lambda: there.copy_(here), num_bytes=2 * size)
    if device.type == "cuda":
        host = torch.ones(size, dtype=torch.uint8).pin_memory()
        _add(rates, "host to device, pinned", lambda: here.copy_(host, non_blocking=True), num_bytes=size)
        _add(rates, "device to host, pinned", lambda: host.copy_(here, non_blocking=True), num_bytes=size)
    return rates


def roofline(work: Work, rates: Rates) -> float | None:
    """Seconds of the matrix products and of the attention alone, each at its measured rate; None if one is missing.

    Products: forward, gradient of the input (the frozen weights need none), and recompute, but for the block's last one,
    whose result no gradient needs. Blocks that keep their attention, or what their linear layers give, do not compute it
    again. Left out: the adapter, all that is memory-bound, embeddings and head.
    """
    config, tokens, layers = work.config, work.tokens, work.config.num_layers
    again = layers * work.checkpointing  # blocks that are computed again
    own = f"{config.num_heads}x{tokens}"
    try:
        seconds = 0.0
        for inner, outer in _linear_sizes(config):
            size = f"{tokens}x{inner}x{outer}"
            repeated = max(again - work.keep_linears, 0) if outer >= inner else 0
            seconds += (layers + repeated) * rates[f"{work.products} forward {size}"]["s"]
            seconds += layers * rates[f"{work.products} backward {size}"]["s"]
        repeated = max(again - max(work.keep_attention, work.keep_linears), 0)
        for keys, count in ((tokens, repeated), (config.text_len, again)):
            seconds += layers * _best(rates, f"attention fwd+bwd {own}x{keys}")
            seconds += count * _best(rates, f"attention fwd {own}x{keys}")
    except KeyError:
        return None
    return seconds


def elementwise_floor(work: Work, rates: Rates) -> float | None:
    """Seconds of the element-wise work if it were fused as far as it goes; an estimate, not part of `roofline`."""
    if "device to device" not in rates:
        return None
    config = work.config
    numbers = work.tokens * (FUSED_WIDTHS * config.dim + FUSED_FFN_WIDTHS * config.ffn_dim)
    return config.num_layers * FUSED_PASSES * numbers * 2 / (rates["device to device"]["gb_s"] * 1e9)


def useful_flop(config: WanConfig, tokens: int) -> float:
    """FLOP of one step without any recomputing: forward, and the gradients of inputs; the adapter's 0.5 % left out."""
    dim, text = config.dim, config.text_len
    linear = sum(2 * tokens * inner * outer for inner, outer in _linear_sizes(config)) + 4 * text * dim**2
    attention = 4 * tokens * (tokens + text) * dim
    return config.num_layers * (2 * linear + 3.5 * attention)


def _linear_sizes(config: WanConfig) -> list[tuple[int, int]]:
    """(in, out) of a block's linears on video tokens: q, k, v, o; cross-attention's q and o; the feed-forward."""
    dim, ffn_dim = config.dim, config.ffn_dim
    return [(dim, dim)] * 6 + [(dim, ffn_dim), (ffn_dim, dim)]


def _best(rates: Rates, prefix: str) -> float:
    """The shortest time of all backends; KeyError if there is none."""
    times = [rate["s"] for name, rate in rates.items() if name.startswith(prefix + " ")]
    if not times:
        raise KeyError(prefix)
    return min(times)


def _matmul_rates(tokens: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device, *, fp8: bool) -> Rates:
    x = torch.randn(tokens, inner, dtype=dtype, device=device)
    weight = torch.randn(outer, inner, dtype=dtype, device=device) * 0.02
    grad = torch.randn(tokens, outer, dtype=dtype, device=device)
    size, flop = f"{tokens}x{inner}x{outer}", 2.0 * tokens * inner * outer
    rates: Rates = {}
    _add(rates, f"bf16 forward {size}", lambda: torch.mm(x, weight.t()), flop=flop)
    _add(rates, f"bf16 backward {size}", lambda: torch.mm(grad, weight), flop=flop)
    kernel = find_kernel(device)
    if not fp8 or kernel is None:
        return rates
    x_8, weight_8, grad_8 = (tensor.to(torch.float8_e4m3fn) for tensor in (x, weight * 50, grad))
    turned = weight_8.t().contiguous()  # the second factor comes column by column
    scale = {size: torch.rand(size, 1, device=device) for size in (tokens, inner, outer)}
    product = partial(multiply, kernel=kernel, fast=True)
    forward = partial(product, x_8, weight_8.t(), scale[tokens], scale[outer].t())
    backward = partial(product, grad_8, turned.t(), scale[tokens], scale[inner].t())
    _add(rates, f"fp8 forward {size}", forward, flop=flop)
    _add(rates, f"fp8 backward {size}", backward, flop=flop)
    return rates


def _attention_rates(shape: AttentionShape, keys: int) -> Rates:
    """Every kind of attention that is right on this device; the slow ones are left out on a GPU."""
    rates: Rates = {}
    for candidate in candidates(shape.device):
        if candidate.name in ("math", "efficient"):
            continue
        try:
            attend = choose_attention(candidate.name, shape).attend
        except ConfigError as error:
            print(f"attention {candidate.name}: {error}")
            continue
        for kind, call, factor in _attention_calls(attend, shape, keys):
            flop = factor * 4.0 * shape.tokens * keys * shape.num_heads * shape.head_dim
            _add(rates, f"attention {kind} {shape.num_heads}x{shape.tokens}x{keys} {candidate.name}", call, flop=flop)
    return rates


def _attention_calls(
    attend: Attend, shape: AttentionShape, keys: int
) -> Iterator[tuple[str, Callable[[], object], float]]:
    q, grad = (_random(shape, shape.tokens) for _ in range(2))
    k, v = (_random(shape, keys) for _ in range(2))
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]

    def forward() -> object:
        with torch.no_grad():
            return attend(q, k, v)

    yield "fwd", forward, 1.0
    yield "fwd+bwd", lambda: torch.autograd.grad(attend(q, k, v), leaves, grad), 3.5


def _random(shape: AttentionShape, tokens: int) -> torch.Tensor:
    return torch.randn(1, tokens, shape.num_heads, shape.head_dim, dtype=shape.dtype, device=shape.device)


def _add(rates: Rates, name: str, call: Callable[[], object], *, flop: float = 0.0, num_bytes: float = 0.0) -> None:
    """The median time of a call over bursts, and its rate; nothing where only the host's launching could be timed."""
    number, act = 1, call
    if torch.cuda.is_available() and launching_share(call) > LAUNCHING:
        try:
            number, act = QUEUED, _recorded(call)
        except RuntimeError as error:
            print(f"{name}: left out, launching it takes as long as computing it ({str(error).splitlines()[0]})")
            return
    seconds = _time(act) / number
    if flop:
        rates[name] = {"s": seconds, "tflops": round(flop / seconds / 1e12, 1)}
    else:
        rates[name] = {"s": seconds, "gb_s": round(num_bytes / seconds / 1e9, 1)}


def launching_share(call: Callable[[], object]) -> float:
    """The share of the time of some calls, few enough to wait in the device's queue, in which the host launched them."""
    call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(QUEUED):
        call()
    launched = time.perf_counter() - start
    _synchronize()
    return launched / (time.perf_counter() - start)


def _recorded(call: Callable[[], object]) -> Callable[[], object]:
    """QUEUED calls as one, launched as a CUDA graph, as in a run's steps of this size."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(QUEUED):
            call()
    return graph.replay


def _heat(device: torch.device) -> None:
    if device.type != "cuda":
        return
    x = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    start = time.perf_counter()
    while time.perf_counter() - start < HEAT:
        torch.mm(x, x)
        _synchronize()


def _time(call: Callable[[], object]) -> float:
    bursts, burst = (BURSTS, BURST) if torch.cuda.is_available() else (1, 0.0)
    call()
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    calls = max(1, int(burst / (time.perf_counter() - start)))
    seconds = []
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronize()
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

"""The host's part of a block that runs by kernels: its time on the CPU, with launches that do nothing and tiny sizes.

python benchmarks/kernels.py --host

What a GPU would compute is left as it is in memory, so the numbers mean nothing, and the time is that of Python and of
PyTorch's dispatcher. A launch itself, some microseconds of the driver's, is not in it; launches are counted.
"""

import cProfile
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.adapters.fused import fuse_adapter
from ..core.adapters.products import use_products
from ..core.adapters.setup import add_adapter
from ..core.kernels import launch as launches
from ..core.kernels import linears
from ..core.kernels import ops as kernel_ops
from ..core.kernels.apply import use_kernels
from ..core.memory.precisions.fp8 import make_fp8
from ..core.memory.precisions.fp8_compute import Fp8ComputeLinear
from ..core.memory.rerun import Rerun
from ..core.settings.adapter import AdapterOptions
from ..core.wan.config import WanConfig
from ..core.wan.model import WanTransformer, call_block

DIM, TOKENS = 64, 32
CONFIG = WanConfig(dim=DIM, ffn_dim=4 * DIM, num_heads=4, num_layers=1, text_dim=16)


def host_rows(repeats: int = 100) -> list[dict[str, Any]]:
    """Microseconds of a block's forward and backward, and what it calls."""
    launched: Counter[str] = Counter()
    _stub(launched)
    rows = []
    for precision in ("bf16", "fp8", "fp8_compute"):
        for keep in ("all", "nothing"):
            step = _step(precision, keep)
            rows.append({"host": precision, "keep": keep, **_measure(step, launched, repeats)})
    return rows


def _stub(launched: Counter[str]) -> None:
    """No kernel runs, and tensors of the CPU are taken as if there were one."""
    kernel_ops.INTERPRETED = True

    class Nothing:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, grid: object) -> Callable[..., None]:
            def run(*_: object, **__: object) -> None:
                launched[self._name] += 1

            return run

    launches.compile_first = lambda kernel, *_: Nothing(kernel.__name__)
    linears.multiply = lambda left, right, *_, **__: left.new_empty((len(left), right.shape[1]), dtype=torch.bfloat16)


def _step(precision: str, keep: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).train().requires_grad_(False)
    model.blocks.to(torch.bfloat16)
    block = model.blocks[0]
    for name, layer in list(block.named_modules()):
        if precision != "bf16" and isinstance(layer, nn.Linear):
            stored = make_fp8(name, layer.weight.data, None, dtype=torch.bfloat16, bias=layer.bias)
            if precision == "fp8_compute":
                tensors = {"weight": stored.get_buffer("weight"), "scale": stored.get_buffer("scale")}
                shape = stored.out_features, stored.in_features
                stored = Fp8ComputeLinear(shape, tensors, layer.bias, kernel="rows")
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, stored)
    add_adapter(model, AdapterOptions(rank=4, alpha=4.0), seed=0)
    fuse_adapter(model)
    model.attend = _attend
    ops, recipes = use_kernels(model)
    use_products(model, partial(linears.make_product, ops=ops), recipes.is_unread)
    rerun = Rerun(recipes)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = torch.randn(1, TOKENS, DIM, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(1, TOKENS, DIM, dtype=torch.bfloat16)
    others = torch.randn(1, 1, 6, DIM), model.rope((1, 4, 8), x.device), torch.randn(1, 8, DIM, dtype=torch.bfloat16)

    def step() -> object:
        y = rerun(call_block, keep, block.ffn[2], block, x, *others)  # type: ignore[arg-type,index]
        return torch.autograd.grad(y, [x, *parameters], grad)

    return step


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _measure(step: Callable[[], object], launched: Counter[str], repeats: int) -> dict[str, Any]:
    for _ in range(5):
        step()
    times = []
    for _ in range(repeats):
        start = time.process_time()  # of this process alone: the machine may have others
        step()
        times.append(time.process_time() - start)
    launched.clear()
    calls: Counter[str] = Counter()
    with _Counting(calls):
        step()
    profiler = cProfile.Profile()
    profiler.runcall(step)
    called = sum(entry[1] for entry in pstats.Stats(profiler).stats.values())  # type: ignore[attr-defined]
    return {
        "us": round(1e6 * statistics.median(times)),
        "least_us": round(1e6 * min(times)),
        "launches": launched.total() // 2,
        "torch_ops": calls.total(),
        "python_calls": called,
        "most": dict(calls.most_common(12)),
    }


class _Counting(TorchDispatchMode):
    def __init__(self, calls: Counter[str]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._calls[str(function).removeprefix("aten.")] += 1
        return function(*args, **(kwargs or {}))

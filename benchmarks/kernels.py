"""The kernels one by one, and a block of the 14B model by plain PyTorch, compiled, and by kernels.

python benchmarks/kernels.py --out results.json

`error` is that of the block's result and of its gradients against the plain block in fp32 with the same weights, the
largest relative one; `plain_error` is that of the plain block in the same precision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from wan_train.benchmarks.kernels_host import host_rows  # noqa: E402
from wan_train.benchmarks.step_kernels import profile_step  # noqa: E402
from wan_train.core.adapters.fused import fuse_adapter  # noqa: E402
from wan_train.core.adapters.products import use_products  # noqa: E402
from wan_train.core.adapters.setup import add_adapter  # noqa: E402
from wan_train.core.kernels import elementwise, rows  # noqa: E402
from wan_train.core.kernels.apply import use_kernels  # noqa: E402
from wan_train.core.kernels.linears import make_product  # noqa: E402
from wan_train.core.kernels.ops import KernelOps  # noqa: E402
from wan_train.core.memory.attention import AttentionShape, choose_attention  # noqa: E402
from wan_train.core.memory.checkpointing import with_checkpointing  # noqa: E402
from wan_train.core.memory.compile import with_compile  # noqa: E402
from wan_train.core.memory.precisions.fp8 import make_fp8, quantize_rows  # noqa: E402
from wan_train.core.memory.precisions.fp8_compute import make_fp8_compute  # noqa: E402
from wan_train.core.memory.recompute import Kept, with_selective_recompute  # noqa: E402
from wan_train.core.memory.rerun import Rerun  # noqa: E402
from wan_train.core.settings.adapter import AdapterOptions  # noqa: E402
from wan_train.core.wan.config import WanConfig  # noqa: E402
from wan_train.core.wan.layers import rope_table  # noqa: E402
from wan_train.core.wan.model import WanTransformer, call_block  # noqa: E402
from wan_train.core.wan.ops import PLAIN, Ops  # noqa: E402

DEVICE = torch.device("cuda")
MODEL = WanConfig(num_layers=1)
MAKERS = {"fp8": make_fp8, "fp8_compute": make_fp8_compute}
GRIDS = {1024: (1, 32, 32), 3600: (1, 60, 60), 4096: (1, 64, 64), 14040: (9, 30, 52)}
# What is compiled: the others would take most of the time.
COMPILED = {("bf16", 4096, "nothing"), ("bf16", 4096, "all"), ("fp8_compute", 4096, "all"), ("fp8_compute", 1024, "all"),
            ("bf16", 14040, "nothing")}  # fmt: skip


def milliseconds(act: Callable[[], object], repeats: int = 25) -> float:
    """Median of one call, with nothing in the L2 cache."""
    flush = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
    for _ in range(3):
        act()
    pairs = []
    for _ in range(repeats):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        act()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def operators(tokens: int, dim: int, ffn_dim: int) -> dict[str, tuple[Callable[[Ops, Tensor], Tensor], Tensor, float]]:
    """(function, x, passes over x forward) by name."""
    head_dim = 128 if dim % 128 == 0 else 12
    x = torch.randn(1, tokens, dim, device=DEVICE, dtype=torch.bfloat16)
    wide = torch.randn(1, tokens, ffn_dim, device=DEVICE, dtype=torch.bfloat16)
    shift, scale, gate = torch.randn(1, 1, 3, dim, device=DEVICE).unbind(2)
    weight, bias = torch.randn(2, dim, device=DEVICE).unbind()
    rope = rope_table((1, 1, tokens), head_dim).to(DEVICE)
    y = torch.randn_like(x)
    beside = {dtype: y.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    return {
        "modulated_norm": (lambda ops, x: ops.modulated_norm(x, shift, scale, 1e-6)[1], x, 2),
        "layer_norm": (lambda ops, x: ops.layer_norm(x, weight, bias, 1e-6)[1], x, 2),
        "rms_norm": (lambda ops, x: ops.rms_norm(x, weight, 1e-6), x, 2),
        "rms_rope": (lambda ops, x: ops.rms_rope(x, weight, 1e-6, rope), x, 2),
        "gated_add": (lambda ops, x: ops.gated_add(beside[x.dtype], x, gate), x, 3),
        "gelu": (lambda ops, x: ops.gelu(x), wide, 2),
    }


def errors() -> Iterator[dict]:
    """Relative errors of results and gradients against the plain code in fp32, for each dtype and awkward sizes."""
    large, odd = (torch.float32, torch.bfloat16), (torch.float16,)
    for tokens, dim, ffn_dim, dtypes in ((300, 5120, 13824, large), (77, 36, 50, odd)):
        for name, (function, x, _) in operators(tokens, dim, ffn_dim).items():
            grad = torch.randn_like(x)
            found = {}
            for dtype in dtypes:
                ours, exact = (with_gradient(function, ops, x.to(dtype).to(to), grad)
                               for ops, to in ((KernelOps(), dtype), (PLAIN, torch.float32)))  # fmt: skip
                found[str(dtype)[6:]] = [f"{relative(a, b):.1e}" for a, b in zip(ours, exact, strict=True)]
            yield {"error": name, "dim": x.shape[-1], **found}


def with_gradient(
    function: Callable[[Ops, Tensor], Tensor], ops: Ops, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = x.requires_grad_()
    result = function(ops, leaf)
    return result, torch.autograd.grad(result, leaf, grad.view_as(result).to(result.dtype))[0]


def relative(found: Tensor, exact: Tensor) -> float:
    found, exact = found.float(), exact.float()
    return ((found - exact).norm() / exact.norm()).item()


def kernel_rows(tokens: int, *, compiled: bool) -> Iterator[dict]:
    """Microseconds, and bandwidth as a part of a copy's."""
    x = torch.randn(tokens, 5120, device=DEVICE, dtype=torch.bfloat16)
    copy = 2 * x.nbytes / milliseconds(lambda: x.clone())
    yield {"kernel": "copy", "tokens": tokens, "us": round(2e3 * x.nbytes / copy, 1), "GB/s": round(copy / 1e6)}

    def row(name: str, act: Callable[[], object], num_bytes: float, other: Callable[[], object] | None = None) -> dict:
        taken = milliseconds(act)
        found = {"kernel": name, "us": round(1e3 * taken, 1), "of_copy": round(num_bytes / taken / copy, 2)}
        return found if other is None else {**found, "compiled_us": round(1e3 * milliseconds(other), 1)}

    for name, (function, given, passes) in operators(tokens, 5120, 13824).items():
        run = partial(function, KernelOps(), given)
        with torch.no_grad():
            other = partial(torch.compile(partial(function, PLAIN), dynamic=False), given) if compiled else None
            yield row(name, run, passes * given.nbytes, other)
            if name in ("modulated_norm", "gelu"):
                yield row(f"{name} + rows", partial(function, KernelOps(quantize=True), given), 2.5 * given.nbytes)
        leaf = given.detach().requires_grad_()
        result = function(KernelOps(), leaf)
        backward = partial(torch.autograd.grad, result, leaf, torch.randn_like(result), retain_graph=True)
        yield row(f"{name} backward", backward, (2 if name == "gated_add" else 3) * given.nbytes)
    yield from weight_rows(tokens, row)


def weight_rows(tokens: int, row: Callable[..., dict]) -> Iterator[dict]:
    wide = torch.randn(tokens, 13824, device=DEVICE, dtype=torch.bfloat16)
    narrow = wide[:, :5120].contiguous()
    by = torch.rand(13824, 1, device=DEVICE)
    yield row("quantize 5120", lambda: rows.quantize_rows(narrow), 1.5 * narrow.nbytes)
    yield row("quantize 13824", lambda: rows.quantize_rows(wide), 1.5 * wide.nbytes)
    yield row("quantize 13824 scaled", lambda: rows.quantize_rows(wide, by), 1.5 * wide.nbytes)
    yield row(
        "gated gradient",
        lambda: elementwise.gated(None, narrow, by[:5120].view(1, 1, -1), tokens, 0),
        2 * narrow.nbytes,
    )
    weight, scale = quantize_rows(torch.randn(13824, 5120, device=DEVICE))
    turned, matrix = weight.new_empty(5120, 13824), torch.empty_like(weight, dtype=torch.bfloat16)
    transpose = lambda: rows.transposed(weight, out=turned)  # noqa: E731
    yield row("transpose 13824x5120", transpose, 2 * weight.nbytes, lambda: weight.t().contiguous())
    dense = lambda: rows.dequantize_rows(weight, scale, out=matrix)  # noqa: E731
    yield row("dequantize 13824x5120", dense, 3 * weight.nbytes)


def make_model(precision: str) -> WanTransformer:
    """The same weights in all precisions but "fp32", which stays as it is."""
    torch.manual_seed(0)
    with DEVICE:
        model = WanTransformer(MODEL).train().requires_grad_(False)
    block = model.blocks[0]
    for name, layer in list(block.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        # The same numbers in fp32: the error is then that of the arithmetic, and of 8 bits where there are.
        layer.to(torch.bfloat16).to(torch.float32 if precision == "fp32" else torch.bfloat16)
        if precision in MAKERS:
            made = MAKERS[precision](name, layer.weight.data, None, dtype=torch.bfloat16, bias=layer.bias)
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, made)
    add_adapter(model, AdapterOptions(rank=16, alpha=16.0), seed=0)
    fuse_adapter(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.01)
    return model


class Block:
    """One block, its inputs, and a way to run it."""

    def __init__(self, model: WanTransformer, tokens: int) -> None:
        dim = MODEL.dim
        self.block, self.model = model.blocks[0], model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        generator = torch.Generator(device=DEVICE).manual_seed(0)
        random = partial(torch.randn, device=DEVICE, generator=generator)
        self.x = random(1, tokens, dim, dtype=torch.bfloat16).requires_grad_()
        self.grad = random(1, tokens, dim, dtype=torch.bfloat16)
        self.others = (
            random(1, 1, 6, dim),
            model.rope(GRIDS[tokens], DEVICE),
            random(1, 512, dim, dtype=torch.bfloat16),
        )
        if model.dtype == torch.float32:
            self.x = self.x.detach().float().requires_grad_()
            self.grad, self.others = self.grad.float(), (*self.others[:2], self.others[2].float())

    def step(self, run_block: Callable[..., Tensor]) -> list[Tensor]:
        y = run_block(self.block, self.x, *self.others)
        return [y.detach(), *torch.autograd.grad(y, [self.x, *self.parameters], self.grad)]


def ways(model: WanTransformer, mode: str, keep: str) -> Callable[..., Tensor]:
    """The block seam."""
    if mode == "kernels":
        ops, recipes = use_kernels(model)
        use_products(model, partial(make_product, ops=ops), recipes.is_unread)
        rerun = Rerun(recipes)
        return lambda block, *inputs: rerun(call_block, keep, block.ffn[2], block, *inputs)  # type: ignore[arg-type]
    kept = Kept(1, 1) if keep == "all" else Kept()
    run = with_checkpointing(call_block)
    if any(kept):
        run = with_selective_recompute(call_block, list(model.blocks), kept, width=MODEL.dim)
    return with_compile(run, tell=print) if mode == "compiled" else run


def measure(block: Block, run_block: Callable[..., Tensor], repeats: int) -> tuple[dict, list[Tensor]]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    results = block.step(run_block)
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    block.step(run_block)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    host = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        block.step(run_block)
        host.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    start = time.perf_counter()
    for _ in range(repeats):
        block.step(run_block)
    torch.cuda.synchronize()
    taken = (time.perf_counter() - start) / repeats
    unit = block.x.nbytes
    found = {"ms": round(1e3 * taken, 2), "host_ms": round(1e3 * min(host), 2), "peak_units": round(peak / unit, 1)}
    return {**found, "first_s": round(first, 2)}, results


def exact_results() -> dict[int, list[Tensor]]:
    """Of the plain block in fp32 by tokens, in main memory; not of the longest, which would take minutes."""
    model = make_model("fp32")
    model.attend = choose_attention(
        "efficient", AttentionShape(4096, MODEL.num_heads, 128, torch.float32, DEVICE)
    ).attend
    run_block = with_checkpointing(call_block)
    return {tokens: [each.cpu() for each in Block(model, tokens).step(run_block)] for tokens in (1024, 4096)}


def largest_error(results: list[Tensor], exact: list[Tensor]) -> float:
    return max(relative(a.float(), b.to(DEVICE)) for a, b in zip(results, exact, strict=True))


def block_rows(precision: str, profiled: bool, exact: dict[int, list[Tensor]]) -> Iterator[dict]:
    plain: dict[int, float] = {}
    for mode in ("plain", "compiled", "kernels"):
        model = make_model(precision) if mode != "kernels" else model  # noqa: F821
        if mode == "plain":
            shape = AttentionShape(4096, MODEL.num_heads, 128, torch.bfloat16, DEVICE)
            choice = choose_attention("auto", shape, compiled=True)
            kind = choice.name
        model.attend = choice.attend
        for keep in ("nothing", "all") if mode != "plain" else ("nothing",):
            run_block = ways(model, mode, keep)
            for tokens in GRIDS:
                if mode == "compiled" and (precision, tokens, keep) not in COMPILED:
                    continue
                block = Block(model, tokens)
                found, results = measure(block, run_block, repeats=max(4, 40960 // tokens))
                if tokens in exact:
                    error = largest_error(results, exact[tokens])
                    found |= {"error": f"{error:.1e}", "plain_error": f"{plain.setdefault(tokens, error):.1e}"}
                yield {"precision": precision, "mode": mode, "keep": keep, "tokens": tokens, **found, "attention": kind}
                if profiled and mode == "kernels" and tokens == 4096 and keep == "all":
                    yield {"profile": precision, **(profile_step(lambda: block.step(run_block)) or {})}  # noqa: B023
        if mode == "compiled":
            torch._dynamo.reset()


def first_calls(precision: str) -> Iterator[dict]:
    """Of this process, by kernels."""
    model = make_model(precision)
    run_block = ways(model, "kernels", "all")
    with torch.no_grad():
        torch.zeros(64, 64, device=DEVICE, dtype=torch.bfloat16) @ torch.zeros(
            64, 64, device=DEVICE, dtype=torch.bfloat16
        )
    for tokens in (3600, 4096):
        found, _ = measure(Block(model, tokens), run_block, 3)
        yield {"first": precision, "tokens": tokens, "first_s": found["first_s"], "ms": found["ms"]}


@contextmanager
def triton_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        yield


def in_own_process(*options: str) -> list[dict]:
    command = [sys.executable, __file__, *options]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        return [{"failed": " ".join(options), "why": found.stderr[-600:]}]
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]


def show(row: dict) -> dict:
    """Print a row, short."""
    if "longest" in row:
        print("profile", row["profile"], {k: v for k, v in row.items() if k not in ("longest", "profile")})
        for name, count, seconds in row["longest"]:
            print(f"   {1e3 * seconds:7.3f} ms x{count:3d} {name[:70]}")
    else:
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp8", "fp8_compute"])
    parser.add_argument("--first-calls", choices=["bf16", "fp8", "fp8_compute"])
    parser.add_argument("--no-kernels", action="store_true", help="blocks alone")
    parser.add_argument("--no-compiled", action="store_true", help="nothing compiled to compare with")
    parser.add_argument("--host", action="store_true", help="the host's part alone, on the CPU")
    options = parser.parse_args()
    if options.first_calls:
        for row in first_calls(options.first_calls):
            print(json.dumps(row))
        return
    if options.no_compiled:
        COMPILED.clear()
    found = [show(row) for row in host_rows()] if options.host else measured(options)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measured(options: argparse.Namespace) -> list[dict]:
    """All that is measured on a GPU."""
    print(torch.cuda.get_device_name(), torch.__version__)
    found = []
    if not options.no_kernels:
        found += [show(row) for row in errors()]
        for tokens in (4096, 1024):
            found += [show(row) for row in kernel_rows(tokens, compiled=tokens == 4096 and not options.no_compiled)]
    with triton_cache():
        for state in ("cold", "warm"):
            found += [show({"cache": state, **row}) for row in in_own_process("--first-calls", "fp8_compute")]
    exact = exact_results()
    for precision in options.precisions:
        found += [show(row) for row in block_rows(precision, precision != "fp8", exact)]
    return found


if __name__ == "__main__":
    main()

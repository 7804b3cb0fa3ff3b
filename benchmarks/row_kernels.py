"""Kernels that go over rows, each with rows in pieces of several sizes: how near they are to what memory gives.

python benchmarks/row_kernels.py --out rows.json
python benchmarks/row_kernels.py --pieces 1024x4 2048x8 --rows 4096

A piece is so many numbers by so many warps; "now" is what `core.kernels.shapes` has. `GB/s` counts what a kernel must read and
write; `of_copy` is that as a part of what a plain copy of the same rows has, with nothing in the L2 cache.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from wan_train.core.kernels import elementwise, norms, rotary, rows, shapes  # noqa: E402

DEVICE = torch.device("cuda")
DIM, FFN_DIM, HEAD_DIM = 5120, 13824, 128
PIECES = ("now", "512x2", "1024x2", "1024x4", "2048x4", "2048x8", "4096x16", "8192x16")
ROWS = (1024, 4096, 14040)
Act = Callable[[], object]


class Case:
    """One kernel on rows of one width."""

    def __init__(self, kernel: str, label: str, width: int, passes: float, act: Act) -> None:
        """`passes`: over a matrix of 16 bits, what is read and written."""
        self.kernel, self.label, self.width, self.passes, self.act = kernel, label, width, passes, act


def cases(count: int) -> Iterator[Case]:
    x = torch.randn(1, count, DIM, device=DEVICE, dtype=torch.bfloat16)
    wide = torch.randn(1, count, FFN_DIM, device=DEVICE, dtype=torch.bfloat16)
    grad, beside, wide_grad = torch.randn_like(x), torch.randn_like(x), torch.randn_like(wide)
    shift, scale, gate = torch.randn(1, 1, 6, DIM, device=DEVICE).unbind(2)[:3]
    weight, by = torch.rand(DIM, device=DEVICE), torch.rand(1, DIM, device=DEVICE)
    wide_by = torch.rand(1, FFN_DIM, device=DEVICE)
    rope = torch.randn(2, count, HEAD_DIM // 2, device=DEVICE)
    numbers, once = (count, 6 * DIM, 1e-6), (1, 0, 1e-6)
    made = rows.ScaledRows(by, *rows.new_rows(x))
    norm = partial(norms.norm, x)
    of_norm = partial(norms.norm_gradient, x)
    yield Case("norm", "rms", DIM, 2, partial(norm, weight, None, once, add_one=False, quantize=False))
    yield Case("norm", "modulated", DIM, 2, partial(norm, scale, shift, numbers, add_one=True, quantize=False))
    yield Case("norm", "modulated, rows", DIM, 2.5, partial(norm, scale, shift, numbers, add_one=True, quantize=True))
    rms = partial(of_norm, weight, None, grad, None, once, add_one=False)
    yield Case("norm_gradient", "rms", DIM, 3, rms)
    yield Case("norm_gradient", "rms, rows", DIM, 3.5, partial(rms, rows=made))
    full = partial(of_norm, scale, shift, grad, beside, numbers, add_one=True, again=True)
    yield Case("norm_gradient", "modulated, again", DIM, 5, full)
    yield Case("rope", "", DIM, 2, partial(rotary.rms_rope, x, weight, rope, 1e-6))
    of_rope = partial(rotary.rms_rope_gradient, x, weight, rope, grad.unflatten(2, (-1, HEAD_DIM)), 1e-6)
    yield Case("rope_gradient", "", DIM, 3, of_rope)
    yield Case("rope_gradient", "rows", DIM, 3.5, partial(of_rope, made))
    yield Case("quantize", "", DIM, 1.5, partial(rows.quantize_rows, x[0]))
    yield Case("quantize", "by", DIM, 1.5, partial(rows.quantize_rows, x[0], by))
    yield Case("quantize", "by", FFN_DIM, 1.5, partial(rows.quantize_rows, wide[0], wide_by))
    yield Case("gelu", "rows", FFN_DIM, 2.5, partial(elementwise.gelu, wide, quantize=True))
    again = partial(elementwise.gelu_gradient, wide, wide_grad, again=True)
    yield Case("gated", "rows", DIM, 2.5, partial(elementwise.gated, None, grad, gate, count, 0, None, made))
    # What does not depend on pieces.
    yield Case("", "gelu", FFN_DIM, 2, partial(elementwise.gelu, wide, quantize=False))
    yield Case("", "gelu gradient, again", FFN_DIM, 4, again)
    yield Case("", "gated", DIM, 2, partial(elementwise.gated, None, grad, gate, count, 0))
    yield Case("", "gated onto", DIM, 3, partial(elementwise.gated, x, grad, gate, count, 0))
    yield Case("", "add", DIM, 3, lambda: beside.add_(grad))


def use(piece: str) -> None:
    """Pieces of this size in all kernels."""
    shapes.piece_of.cache_clear()
    if piece == "now":
        shapes.NARROW, shapes.WIDE, shapes._NARROW, shapes._WIDE = NOW
        return
    shapes.NARROW, shapes.WIDE = {}, {}
    shapes._NARROW = shapes._WIDE = shapes.Piece(*map(int, piece.split("x")))


NOW = shapes.NARROW, shapes.WIDE, shapes._NARROW, shapes._WIDE


def compile_all(pieces: list[str]) -> None:
    """On threads: those of one size at a time, since they are chosen for all threads together."""
    found = list(cases(16))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for piece in pieces:
            use(piece)
            list(pool.map(lambda case: case.act(), found))
    torch.cuda.synchronize()


def microseconds(act: Act, flush: Tensor, repeats: int = 15) -> float:
    """Median of one call, with nothing in the L2 cache."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    act()
    for start, end in pairs:
        flush.zero_()
        start.record()
        act()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in pairs)


def measured(counts: list[int], pieces: list[str]) -> Iterator[dict]:
    flush = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
    for count in counts:
        found, copies = list(cases(count)), {}
        for width in (DIM, FFN_DIM):
            source = torch.randn(count, width, device=DEVICE, dtype=torch.bfloat16)
            target = torch.empty_like(source)
            copies[width] = 2 * source.nbytes / microseconds(lambda: target.copy_(source), flush)  # noqa: B023
        for number, piece in enumerate(pieces):
            use(piece)
            for case in found:
                if not case.kernel and number:
                    continue
                taken = microseconds(case.act, flush)
                rate = case.passes * 2 * count * case.width / taken
                yield {
                    "kernel": f"{case.kernel or case.label} {case.label if case.kernel else ''}".strip(),
                    "width": case.width, "rows": count, "piece": piece if case.kernel else "",
                    "us": round(taken, 1), "GB/s": round(rate / 1e3), "of_copy": round(rate / copies[case.width], 2),
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pieces", nargs="+", default=list(PIECES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    options = parser.parse_args()
    start = time.perf_counter()
    compile_all(options.pieces)
    print(torch.cuda.get_device_name(), torch.__version__, f"compiled in {time.perf_counter() - start:.1f} s")
    found = []
    for row in measured(options.rows, options.pieces):
        found.append(row)
        if options.out is None:
            print(*(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
    for row in best(found):
        print(row)
    print(f"{time.perf_counter() - start:.1f} s")
    if options.out:
        options.out.write_text(json.dumps(found, indent=0), encoding="utf-8")


def best(found: list[dict]) -> Iterator[str]:
    """Of each kernel the three fastest pieces, and that of now."""
    groups: dict[tuple, list[dict]] = {}
    for row in found:
        groups.setdefault((row["kernel"], row["width"], row["rows"]), []).append(row)
    for key, group in groups.items():
        now = [row for row in group if row["piece"] == "now"]
        told = sorted(group, key=lambda row: row["us"])[:3] + now
        yield f"{' '.join(map(str, key))}: " + ", ".join(f"{r['piece']} {r['us']} us {r['of_copy']}" for r in told)


if __name__ == "__main__":
    main()

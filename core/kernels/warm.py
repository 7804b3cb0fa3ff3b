"""Compiles the kernels before they are needed, on threads, while the model is read.

Each kernel runs once on a few rows. Triton lets go of Python's lock while LLVM and the assembler work, so threads suffice.
A kernel that is in Triton's cache already is only loaded.
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ROWS = 16  # of the activations that the kernels are tried on
MOST_THREADS = 16
Act = Callable[[], object]


@dataclass(frozen=True)
class Needs:
    """What kernels are compiled for."""

    device: torch.device
    dtype: torch.dtype  # of activations
    dim: int
    ffn_dim: int
    head_dim: int
    quantizes: bool = False  # activations and gradients, as fp8_compute does
    weights: torch.dtype | None = None  # of 8 bits with a scale for each row, which are brought into `dtype`


class Warming:
    """Kernels under way. `wait` before the first step, which would compile what is missing one by one."""

    def __init__(self, needs: Needs) -> None:
        acts = [partial(_on, needs.device, act) for act in kernels_of(needs)]
        workers = max(1, min(MOST_THREADS, os.cpu_count() or 1, len(acts)))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kernels")
        self._futures: list[Future[object]] = [self._pool.submit(act) for act in acts]

    def wait(self) -> None:
        """Until all are ready. What failed is left to the step that needs it, which can say more."""
        for future in self._futures:
            error = future.exception()
            if error is not None:
                log.info("A kernel could not be made ready: %s", error)
        self._pool.shutdown()


def _on(device: torch.device, act: Act) -> object:
    if device.type != "cuda":
        return act()
    with torch.cuda.device(device):  # of this thread
        return act()


def kernels_of(needs: Needs) -> Iterator[Act]:
    """What runs each kernel that a block of this kind needs, once."""
    yield from _norms(needs)
    yield from _elementwise(needs)
    if needs.quantizes:
        yield from _quantizing(needs)
    if needs.weights is not None:
        yield from _dequantizing(needs, needs.weights)


def _norms(needs: Needs) -> Iterator[Act]:
    from . import norms, rotary

    x, row = _rows(needs, needs.dim), _factor(needs, needs.dim)
    numbers = (ROWS, 0, 1e-6)
    for bias, add_one in ((row, True), (row, False), (None, False)):
        for quantize in {False, needs.quantizes and bias is not None}:
            yield partial(norms.norm, x, row, bias, numbers, add_one=add_one, quantize=quantize)
        # With what the residual stream's gradient is, where the norm leaves it; and with the norm itself made again, or not.
        for beside, again in ((None, False),) if bias is None else ((x, True), (x, False)):
            yield partial(norms.norm_gradient, x, row, bias, x, beside, numbers, add_one=add_one, again=again)
    rope = torch.zeros(2, ROWS, needs.head_dim // 2, device=needs.device)
    yield partial(rotary.rms_rope, x, row, rope, 1e-6)
    yield partial(rotary.rms_rope_gradient, x, row, rope, x.unflatten(2, (-1, needs.head_dim)), 1e-6)


def _elementwise(needs: Needs) -> Iterator[Act]:
    from . import elementwise

    x, wide = _rows(needs, needs.dim), _rows(needs, needs.ffn_dim)
    gate = _factor(needs, needs.dim)
    for quantize in {False, needs.quantizes}:
        yield partial(elementwise.gelu, wide, quantize=quantize)
    for again in (True, False):
        yield partial(elementwise.gelu_gradient, wide, wide, again=again)
    yield partial(elementwise.gated, x, x, gate, ROWS, 0)
    yield partial(elementwise.gated, None, x, gate, ROWS, 0)


def _quantizing(needs: Needs) -> Iterator[Act]:
    from . import elementwise, norms, rotary, rows

    dim, ffn_dim = needs.dim, needs.ffn_dim
    for width in {dim, ffn_dim}:
        given = _rows(needs, width)[0]
        yield partial(rows.quantize_rows, given)
        yield partial(rows.quantize_rows, given, _factor(needs, width))
    # Gradients that leave their rows for the product behind them, in the place of those that don't.
    x, row, numbers = _rows(needs, dim), _factor(needs, dim), (ROWS, 0, 1e-6)
    made = rows.ScaledRows(row, *rows.new_rows(x))
    rope = torch.zeros(2, ROWS, needs.head_dim // 2, device=needs.device)
    yield partial(norms.norm_gradient, x, row, None, x, None, numbers, add_one=False, rows=made)
    yield partial(rotary.rms_rope_gradient, x, row, rope, x.unflatten(2, (-1, needs.head_dim)), 1e-6, made)
    yield partial(elementwise.gated, None, x, row, ROWS, 0, None, made)
    for shape in {(dim, dim), (ffn_dim, dim), (dim, ffn_dim)}:  # for which they are compiled
        yield partial(_transpose, needs.device, shape)


def _transpose(device: torch.device, shape: tuple[int, int]) -> Tensor:
    from .rows import E4M3, transposed

    weight = torch.empty(shape, dtype=E4M3, device=device)
    return transposed(weight, out=weight.new_empty(shape[::-1]))


def _dequantizing(needs: Needs, weights: torch.dtype) -> Iterator[Act]:
    from . import rows

    for width in {needs.dim, needs.ffn_dim}:
        weight = torch.zeros(ROWS, width, dtype=torch.uint8, device=needs.device).view(weights)
        scale = torch.ones(ROWS, 1, device=needs.device)
        yield partial(rows.dequantize_rows, weight, scale, out=torch.empty_like(weight, dtype=needs.dtype))


def _rows(needs: Needs, width: int) -> Tensor:
    return torch.zeros(1, ROWS, width, dtype=needs.dtype, device=needs.device)


def _factor(needs: Needs, width: int) -> Tensor:
    return torch.ones(1, 1, width, device=needs.device)

"""LoHa (Hyeon-Woo et al., 2022, arXiv:2108.06098): the change is the product, number by number, of two low-rank matrices.

Legend: r rank, in/out widths of the linear layer; each pair has a [out, r] and b [r, in]. The change has rank r^2 at most.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...settings.adapter import AdapterOptions
from ..kind import AdapterKind, KeptBytes, LayerShape
from ..other_files import read_state, write_state
from ..places import Place
from ..wrapped import (
    WrappedLinear,
    around,
    match_wrapped,
    no_light_forward,
    wrap,
    wrapped_layers,
    wrapped_state,
)

KIND = "loha"
NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class _Hadamard(torch.autograd.Function):
    """scale (a1 b1) * (a2 b2) in another dtype: both products are made again in the backward, and not kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        ctx.scale = scale
        return (a1 @ b1).mul_(a2 @ b2).mul_(scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        grad = grads[0].to(a1.dtype) * ctx.scale
        of_first = grad * (a2 @ b2)
        of_a1, of_b1 = of_first @ b1.t(), a1.t() @ of_first
        del of_first
        of_second = grad.mul_(a1 @ b1)
        return of_a1, of_b1, of_second @ b2.t(), a2.t() @ of_second, None, None


class LohaLinear(WrappedLinear):
    """Three of the factors are drawn from a normal distribution, as in LyCORIS; the second pair's a is zero."""

    kind = KIND

    def __init__(self, base: nn.Module, place: Place, options: AdapterOptions) -> None:
        super().__init__(base, place, options)
        for name in NAMES:
            shape = (self.out_features, place.rank) if name.endswith("_a") else (place.rank, self.in_features)
            self.add(name, shape)

    def start(self, seed: int, path: str) -> None:
        """The values before the first step: deviations of 0.1 (a) and 1 (b), as LyCORIS has them."""
        self.draw(seed, path, NAMES)
        with torch.no_grad():
            for name, deviation in zip(NAMES, (0.1, 1.0, 0.0, 1.0), strict=True):
                matrix = self.get_parameter(name)
                matrix.data = _normal(matrix * matrix.shape[1] ** 0.5).mul_(deviation)

    def change(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        factors = (self.get_parameter(name) for name in NAMES)
        return functional.linear(x, _Hadamard.apply(*factors, self.alpha / self.rank, x.dtype))  # type: ignore[arg-type]


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [-1, 1]."""
    return torch.erfinv(uniform.clamp(-1 + 1e-6, 1 - 1e-6)).mul_(2**0.5)


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 LoHa on its linear layers, in place."""
    return wrap(model, options, seed, LohaLinear)


def matrices(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[LayerShape, ...]:  # noqa: ARG001
    """Two pairs of factors."""
    return ((shape[0], rank), (rank, shape[1])) * 2


def kept(shape: LayerShape, rank: int, options: AdapterOptions, element_size: int) -> KeptBytes:  # noqa: ARG001
    """The whole change, as large as the layer's weight."""
    return KeptBytes(0, element_size * shape[0] * shape[1])


def working(shape: LayerShape, element_size: int) -> int:
    """The gradient of the change in both dtypes, one of its factors, and their product."""
    return (element_size + 12) * shape[0] * shape[1]


METHOD = AdapterKind(
    help="LoHa, two pairs of low-rank matrices multiplied number by number: a high rank from few numbers, but slower steps",
    put_on=put_on,
    layers=partial(wrapped_layers, kind=KIND),
    state=partial(wrapped_state, kind=KIND),
    matched=partial(match_wrapped, kind=KIND),
    light_forward=no_light_forward,
    matrices=matrices,
    kept=kept,
    working=working,
    to_file=write_state,
    from_file=partial(read_state, kind=KIND),
    weight_traffic=246.0,  # of a 14B model in bf16: benchmarks/results/methods-h200.json
    is_plain=False,
    around=around,
)

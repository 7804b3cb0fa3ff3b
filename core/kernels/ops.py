"""The element-wise arithmetic of a block by kernels: what `core.wan.ops` has in plain PyTorch, as autograd functions.

A function keeps its input, and computes statistics again in the backward. The base is frozen: shifts, scales, gates and
the weights of norms get no gradient, and where one is wanted, or the kernels do not take an input, the plain code runs.

Shapes: B batch, L tokens, D width, N heads, K head dim, T timesteps per sample, R rows (B L).
"""

import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory.remaker import Remaker
from ..wan.ops import Ops
from . import elementwise, norms, rotary, rows
from .rows import ScaledRows
from .scratch import Scratch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU, for tests


class KernelOps(Ops):
    """For one model. How a result is made again is noted in `remaker`.

    With `quantize`, results that go into linear layers leave their rows in e4m3 for them.
    """

    def __init__(self, remaker: Remaker | None = None, *, quantize: bool = False) -> None:
        self.remaker = remaker or Remaker()
        self.scratch = Scratch()  # of the products of linear layers
        self._quantize = quantize
        self._latest: _Latest | None = None

    def modulated_norm(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Ops`."""
        if not fits(x, shift, scale) or row_stride(shift) != row_stride(scale):
            return super().modulated_norm(x, shift, scale, eps)
        return self._branch(x.contiguous(), modulation(x, shift, scale, eps))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Ops`."""
        if not fits(x, weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        return self._branch(x.contiguous(), affine(weight, bias, eps))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        if not fits(x, weight):
            return super().rms_norm(x, weight, eps)
        x = x.contiguous()
        factors = affine(weight, None, eps)
        if not _needs_gradient(x):
            return factors.again(x)
        y = _Norm.apply(x, factors)
        assert isinstance(y, Tensor)
        self.remaker.note(y, factors.again, x)
        return y

    def rms_rope(self, x: Tensor, weight: Tensor, eps: float, rope: Tensor) -> Tensor:
        """See `Ops`."""
        if not fits(x, weight, rope):
            return super().rms_rope(x, weight, eps, rope)
        x, rope = x.contiguous(), rope.contiguous()
        if not _needs_gradient(x):
            return rotary.rms_rope(x, weight, rope, eps)
        y = _RmsRope.apply(x, weight, rope, eps)
        assert isinstance(y, Tensor)
        self.remaker.note(y, lambda x: rotary.rms_rope(x, weight, rope, eps), x)
        return y

    def gated_add(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """See `Ops`."""
        if not fits(x, gate) or x.dtype != y.dtype:
            return super().gated_add(x, y, gate)
        if y.stride(-1) == 0:  # a stand-in, see `Remaker.is_unread`
            return _StandIn.apply(x, y, gate) if _needs_gradient(x, y) else x  # type: ignore[return-value]
        x, y = x.contiguous(), y.contiguous()
        rows_each = x.shape[0] * x.shape[1] // (gate.shape[0] * gate.shape[1])
        if not _needs_gradient(x, y):
            return elementwise.gated(x, y, gate, rows_each, row_stride(gate))
        return _Gated.apply(x, y, gate, rows_each)  # type: ignore[return-value]

    def gelu(self, x: Tensor) -> Tensor:
        """See `Ops`."""
        if not fits(x):
            return super().gelu(x)
        x = x.contiguous()
        if not _needs_gradient(x):
            return self.quick_gelu(x)
        y, *found = _Gelu.apply(x, self._quantize)  # type: ignore[misc]
        self.remaker.note(y, gelu_again, x)
        self._remember(y, found)
        return y

    def quick_norm(self, x: Tensor, factors: "NormFactors") -> Tensor:
        """Without autograd; the rows of the result are at hand for the layer that follows."""
        y, found = factors.forward(x, quantize=self._quantize)
        self._remember(y, found)
        return y

    def quick_gelu(self, x: Tensor) -> Tensor:
        """As `quick_norm`."""
        y, found = elementwise.gelu(x, quantize=self._quantize)
        self._remember(y, found)
        return y

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, K] in e4m3 and its scales [R, 1]: those that the latest result has left, if x is it."""
        latest = self._latest
        if latest is not None and latest.is_of(x):
            return latest.rows, latest.scale
        found = rows.quantize_rows(x.contiguous())
        self._remember(x, found)
        return found

    def _branch(self, x: Tensor, factors: "NormFactors") -> tuple[Tensor, Tensor]:
        if not _needs_gradient(x):
            return x, self.quick_norm(x, factors)
        residual, y, *found = _Branch.apply(x, factors, self._quantize)  # type: ignore[misc]
        self.remaker.note(y, factors.again, x)
        self._remember(y, found)
        return residual, y

    def _remember(self, y: Tensor, found: Sequence[Tensor] | None) -> None:
        self._latest = _Latest(weakref.ref(y), y.data_ptr(), y.numel(), *found) if found else None


class _Latest(NamedTuple):
    """The rows of a tensor that may be asked for; as long as it lives, nothing else has its address."""

    tensor: "weakref.ref[Tensor]"
    address: int
    size: int
    rows: Tensor
    scale: Tensor

    def is_of(self, x: Tensor) -> bool:
        return self.tensor() is not None and (x.data_ptr(), x.numel()) == (self.address, self.size)


class NormFactors:
    """What a norm's result is multiplied by, and what is added: rows of [.., D], each for `rows_each` rows of x."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows_each: int, stride: int, eps: float, *, add_one: bool = False
    ) -> None:
        self.weight, self.bias, self.add_one = weight, bias, add_one
        self.numbers = rows_each, stride, eps

    def forward(self, x: Tensor, *, quantize: bool) -> tuple[Tensor, rows.Rows | None]:
        """The norm of x, and its rows in e4m3."""
        return norms.norm(x, self.weight, self.bias, self.numbers, add_one=self.add_one, quantize=quantize)

    def again(self, x: Tensor) -> Tensor:
        """The norm of x alone."""
        return self.forward(x, quantize=False)[0]

    def backward(
        self,
        x: Tensor,
        grad: Tensor,
        beside: Tensor | None,
        *,
        again: bool = False,
        rows: ScaledRows | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of x from that of its norm, plus `beside`; with `again` the norm, too. `rows`: the gradient's."""
        beside = None if beside is None else beside.contiguous()
        given = x, self.weight, self.bias, grad.contiguous(), beside, self.numbers
        return norms.norm_gradient(*given, add_one=self.add_one, again=again, rows=rows)


def modulation(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> NormFactors:
    """Of x [B, L, D] by shift and scale [B, T, D]."""
    rows_each = x.shape[0] * x.shape[1] // (scale.shape[0] * scale.shape[1])
    return NormFactors(scale, shift, rows_each, row_stride(scale), eps, add_one=True)


def affine(weight: Tensor, bias: Tensor | None, eps: float) -> NormFactors:
    """One weight and bias [D] for all rows."""
    return NormFactors(weight, bias, 1, 0, eps)


class _Branch(torch.autograd.Function):
    """x itself, and a norm of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: NormFactors, quantize: bool) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        y, found = factors.forward(x, quantize=quantize)
        ctx.mark_non_differentiable(*(found or ()))
        return x.view_as(x), y, *(found or ())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        beside, grad, *_ = grads
        if grad is None:
            return beside, None, None
        return ctx.factors.backward(*ctx.saved_tensors, grad, beside)[0], None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: NormFactors) -> Tensor:  # type: ignore[override]
        ctx.factors = factors
        ctx.save_for_backward(x)
        return factors.again(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return ctx.factors.backward(*ctx.saved_tensors, grad, None)[0], None


class _RmsRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rope: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight, rope)
        ctx.eps = eps
        return rotary.rms_rope(x, weight, rope, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, rope = ctx.saved_tensors
        return rotary.rms_rope_gradient(x, weight, rope, grad.contiguous(), ctx.eps), None, None, None


class _StandIn(torch.autograd.Function):
    """`_Gated` of a y that was not computed, whose result nobody reads; its gradients are those of any other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate)
        ctx.rows_each = x.shape[0] * x.shape[1] // (gate.shape[0] * gate.shape[1])
        return y.as_strided(x.shape, (0, 0, 0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_y, *_ = _Gated.backward(ctx, *grads)
        return grad_x, grad_y, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, rows_each: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate)
        ctx.rows_each = rows_each
        return elementwise.gated(x, y, gate, rows_each, row_stride(gate))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (gate,) = ctx.saved_tensors
        of_y = None
        if ctx.needs_input_grad[1]:
            of_y = elementwise.gated(None, grad.contiguous(), gate, ctx.rows_each, row_stride(gate))
        return grad, of_y, None, None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantize: bool) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        y, found = elementwise.gelu(x, quantize=quantize)
        ctx.mark_non_differentiable(*(found or ()))
        return y, *(found or ())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return None, None
        (x,) = ctx.saved_tensors
        return elementwise.gelu_gradient(x, grad.contiguous())[0], None


def gelu_again(x: Tensor) -> Tensor:
    """GELU of x alone."""
    return elementwise.gelu(x, quantize=False)[0]


def fits(x: Tensor, *constants: Tensor) -> bool:
    """Whether the kernels take x, and constants that want no gradient."""
    if torch.compiler.is_compiling() or x.dtype not in DTYPES or not (x.is_cuda or INTERPRETED):
        return False
    return not (torch.is_grad_enabled() and any(constant.requires_grad for constant in constants))


def _needs_gradient(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def row_stride(factors: Tensor) -> int:
    """Numbers from one row of [B, T, D] to the next, of which only the last axis need be contiguous."""
    assert factors.stride(2) == 1
    assert factors.shape[0] == 1 or factors.shape[1] == 1 or factors.stride(0) == factors.shape[1] * factors.stride(1)
    return factors.stride(1) if factors.shape[1] > 1 else factors.stride(0)

"""The autograd functions that a block is made of, each with a backward written by hand; `blocks` puts them together.

Shapes: B batch, L video tokens, S tokens of a context, D width, N heads, K head dim, T timesteps per sample, M = B L.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapters.around import around_of
from ..memory.remaker import Make
from ..wan.layers import WanBlock
from . import elementwise, rotary
from .graph_groups import GraphGroup
from .linear_groups import GroupSeen, LinearGroup, Workspace
from .ops import KernelOps, NormFactors, affine, gelu_again, modulation, row_stride
from .rows import ScaledRows

LayerGroup = LinearGroup | GraphGroup


def group_of(layers: Sequence[nn.Module]) -> LayerGroup:
    """Layers that see the same input, as a group of the kind that their adapters want; see `LinearGroup` and `GraphGroup`."""
    return (GraphGroup if any(around_of(layer) for layer in layers) else LinearGroup)(layers)


class BlockLinears:
    """The linear layers of one block, in groups that read the same, and the room for their LoRA factors."""

    def __init__(self, block: WanBlock, dtype: torch.dtype | None, ops: KernelOps, workspace: Workspace) -> None:
        self.ops, self.dtype, self._workspace = ops, dtype, workspace
        self._block = weakref.ref(block)
        attn, cross = block.self_attn, block.cross_attn
        self.qkv, self.o = group_of([attn.q, attn.k, attn.v]), group_of([attn.o])
        self.cross_q, self.cross_o = group_of([cross.q]), group_of([cross.o])
        self.contexts = [group_of([cross.k, cross.v])]
        if hasattr(cross, "k_img"):
            self.contexts.append(group_of([cross.k_img, cross.v_img]))
        self.inner, self.outer = group_of([block.ffn[0]]), group_of([block.ffn[2]])
        self.groups = [self.qkv, self.o, self.cross_q, *self.contexts, self.cross_o, self.inner, self.outer]

    @property
    def is_current(self) -> bool:
        """Whether the block's layers are those that they were."""
        return all(group.is_current for group in self.groups)

    @property
    def is_at_work(self) -> bool:
        """Whether the layers' adapters are: they are not in a forward of the base alone."""
        return all(group.is_at_work for group in self.groups)

    @property
    def block(self) -> WanBlock:
        block = self._block()
        assert block is not None
        return block

    def start(self, x: Tensor, time_mod: Tensor) -> tuple[Tensor, ...]:
        """Shifts, scales and gates [B, T, D] of the block; brings the factors in."""
        self._workspace.load(self, self.groups, x, fresh=True)
        mods = torch.add(self.block.modulation, time_mod)
        return (mods if mods.dtype == torch.float32 else mods.float()).unbind(2)

    def resume(self, like: Tensor) -> None:
        """The factors are there, for a backward."""
        self._workspace.load(self, self.groups, like, fresh=False)


class Noted:
    """What a function leaves for the remaker."""

    raw: tuple[Tensor, ...] | None = None


class _Constants(NamedTuple):
    """What a function is given that gets no gradient."""

    functions: BlockLinears
    given: Any
    keeps: bool


def apply(
    function: Any, x: Tensor, y: Tensor | None, functions: BlockLinears, given: Any, parameters: list[nn.Parameter]
) -> Any:
    """The function of x, and of y where there is one."""
    wants = torch.is_grad_enabled() and (
        x.requires_grad or (y is not None and y.requires_grad) or any(p.requires_grad for p in parameters)
    )
    constants = _Constants(functions, given, wants)
    if not wants:
        with torch.no_grad():
            return function.forward(_NoContext, x, y, constants, *parameters)
    return function.apply(x, y, constants, *parameters)


class _NoContext:
    """In the place of autograd's context, where there is nothing to keep."""

    kept: Any = None


class SelfIn(torch.autograd.Function):
    """x, and queries, keys and values [B, L, N, K] of its modulated norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _y: None, constants: _Constants, *_: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        functions, (state, mods, rope), keeps = constants
        attn = functions.block.self_attn
        factors = modulation(x, mods[0], mods[1], functions.block.eps)
        (q, k, v), seen = functions.qkv.forward(_normed(functions, functions.qkv, x, factors), len(x), keeps=keeps)
        q, k, v = (each.view(x.shape) for each in (q, k, v))  # type: ignore[union-attr]
        if keeps:
            state.raw = q, k
            keep = functions.ops.remaker.keeper
            ctx.kept = functions, keep(x), factors, rope, keep(q), keep(k), _keep_seen(functions, seen)
        q = rotary.rms_rope(q, attn.norm_q.weight, rope, attn.norm_q.eps)
        k = rotary.rms_rope(k, attn.norm_k.weight, rope, attn.norm_k.eps)
        return (x.view_as(x) if keeps else x), q, k, v.view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        functions, keeper, factors, rope, q, k, seen = _take(ctx)
        of_x, of_q, of_k, of_v = grads
        functions.resume(of_x)
        attn = functions.block.self_attn
        q, k, seen = q(), k(), seen()
        rows = [functions.qkv.rows_for(n, x) if ctx.needs_input_grad[0] else None for n, x in enumerate((q, k))]
        of_q = _rope_gradient(q, attn.norm_q, rope, of_q, rows[0])
        of_k = _rope_gradient(k, attn.norm_k, rope, of_k, rows[1])
        del q, k
        each = _flat(of_q), _flat(of_k), of_v.reshape(-1, of_q.shape[2])
        del of_q, of_k, of_v, grads
        return _through_norm(ctx, functions.qkv, each, seen, (keeper(), factors, of_x), rows)


class CrossIn(torch.autograd.Function):
    """x, and queries [B, L, N, K] of its norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _y: None, constants: _Constants, *_: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        functions, state, keeps = constants
        block = functions.block
        cross, norm3 = block.cross_attn, block.norm3
        factors = affine(norm3.weight, norm3.bias, norm3.eps)
        (q,), seen = functions.cross_q.forward(_normed(functions, functions.cross_q, x, factors), len(x), keeps=keeps)
        assert q is not None
        if keeps:
            state.raw = (q,)
            keep = functions.ops.remaker.keeper
            ctx.kept = functions, keep(x), factors, keep(q), _keep_seen(functions, seen)
        q = affine(cross.norm_q.weight, None, cross.norm_q.eps).again(q)
        return (x.view_as(x) if keeps else x), q.view(*x.shape[:2], cross.num_heads, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        functions, keeper, factors, q, seen = _take(ctx)
        of_x, of_q = grads
        functions.resume(of_x)
        norm = functions.block.cross_attn.norm_q
        q = q()
        rows = functions.cross_q.rows_for(0, q) if ctx.needs_input_grad[0] else None
        of_q, _ = affine(norm.weight, None, norm.eps).backward(q, of_q.reshape(q.shape), None, rows=rows)
        return _through_norm(ctx, functions.cross_q, (of_q,), seen(), (keeper(), factors, of_x), [rows])


class KeysAndValues(torch.autograd.Function):
    """Keys and values [B, S, N, K] of a context, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, _y: None, constants: _Constants, *_: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        functions, (state, group, norm), keeps = constants
        context = context.contiguous()
        (k, v), seen = group.forward(_flat(context), len(context), keeps=keeps)
        if keeps:
            state.raw = (k,)
            ctx.kept = functions, group, norm, context, functions.ops.remaker.keeper(k), _keep_seen(functions, seen)
        shape = (*context.shape[:2], functions.block.cross_attn.num_heads, -1)
        return affine(norm.weight, None, norm.eps).again(k).view(shape), v.view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        functions, group, norm, context, k, seen = _take(ctx)
        k, seen = k(), seen()
        functions.resume(k)
        of_k, _ = affine(norm.weight, None, norm.eps).backward(k, grads[0].reshape(k.shape), None)
        _, of_seen, of_ups = group.backward((of_k, grads[1].reshape(k.shape)), seen, of_x=False)
        return None, None, None, *group.factor_gradients(_flat(context), of_seen, of_ups)


class Out(torch.autograd.Function):
    """x plus the output projection of y [B, L, N, K], times a gate where there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, constants: _Constants, *_: Tensor) -> Tensor:  # type: ignore[override]
        functions, (group, gate), keeps = constants
        y_MD = y.reshape(-1, x.shape[2])
        (found,), seen = group.forward(y_MD, len(x), keeps=keeps)
        assert found is not None
        if keeps:
            y_kept = functions.ops.remaker.keeper(y_MD) if group.needs_input else _no_tensor
            ctx.kept = functions, group, gate, y_kept, _keep_seen(functions, seen), y.shape
        return found.view(x.shape).add_(x) if gate is None else _gated(x, found.view(x.shape), gate, onto=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        functions, group, gate, y_kept, seen, shape = _take(ctx)
        (grad,) = grads
        functions.resume(grad)
        grad = grad.contiguous()
        rows = group.rows_for(0, grad) if gate is not None and ctx.needs_input_grad[1] else None
        of_found = grad if gate is None else _gated(None, grad, gate, rows=rows)
        of_y, of_seen, of_ups = group.backward((_flat(of_found),), seen(), of_x=ctx.needs_input_grad[1], rows=[rows])
        del rows
        factors = group.factor_gradients(y_kept(), of_seen, of_ups)
        return grad, None if of_y is None else of_y.view(shape), None, *factors


class FeedForward(torch.autograd.Function):
    """x plus the gated feed-forward of its modulated norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _y: None, constants: _Constants, *_: Tensor) -> Tensor:  # type: ignore[override]
        functions, mods, keeps = constants
        factors = modulation(x, mods[0], mods[1], functions.block.eps)
        (wide,), inner = functions.inner.forward(_normed(functions, functions.inner, x, factors), len(x), keeps=keeps)
        assert wide is not None
        y = functions.ops.quick_gelu(wide)
        _note(functions, functions.outer, y, gelu_again, wide)
        (found,), outer = functions.outer.forward(y, len(x), keeps=keeps)
        if keeps:
            keep = functions.ops.remaker.keeper
            seen = _keep_seen(functions, inner), _keep_seen(functions, outer)
            ctx.kept = functions, keep(x), factors, mods[2], keep(wide), *seen
        if found is None:  # nobody reads the result
            return x.new_empty(1).as_strided(x.shape, (0, 0, 0))
        return _gated(x, found.view(x.shape), mods[2], onto=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        functions, keeper, factors, gate, wide, inner, outer = _take(ctx)
        grad = grads[0].contiguous()
        functions.resume(grad)
        rows = functions.outer.rows_for(0, grad)
        of_found = _flat(_gated(None, grad, gate, rows=rows))
        of_y, of_seen, of_ups = functions.outer.backward((of_found,), outer(), of_x=True, rows=[rows])
        assert of_y is not None
        del of_found, rows
        wide = wide()
        of_wide, y = elementwise.gelu_gradient(wide, of_y, again=functions.outer.needs_input, onto=True)
        del of_y, wide
        of_outer = functions.outer.factor_gradients(y, of_seen, of_ups)
        del y
        found = _through_norm(ctx, functions.inner, (of_wide,), inner(), (keeper(), factors, grad))
        return *found, *of_outer


def _normed(functions: BlockLinears, group: LayerGroup, x: Tensor, factors: NormFactors) -> Tensor:
    """The norm [M, D] of x [B, L, D], which `group` will see."""
    y = functions.ops.quick_norm(x, factors)
    _note(functions, group, y, factors.again, x)
    return _flat(y)


def _note(functions: BlockLinears, group: LayerGroup, y: Tensor, make: Make, x: Tensor) -> None:
    """Let the graphs of `group` keep how y, which it will see, is made again from x, rather than y."""
    if group.has_graphs:
        functions.ops.remaker.note(y, make, x)


def _through_norm(
    ctx: Any,
    group: LayerGroup,
    grads: tuple[Tensor, ...],
    seen: Any,
    norm: tuple[Tensor, NormFactors, Tensor],
    rows: list[Any] | None = None,
) -> tuple[Any, ...]:
    """The gradients of x, of what is none, and of the group's factors, from those of layers that see a norm of x.

    `norm`: x, the norm's factors, and what x's gradient has besides. `rows`: see `LinearGroup.backward`; they are let go.
    """
    x, factors, beside = norm
    of_y, of_seen, of_ups = group.backward(grads, seen, of_x=ctx.needs_input_grad[0], rows=rows)
    if of_y is None:
        y = factors.again(x) if group.needs_input else None
        of_x = None
    else:
        of_x, y = factors.backward(x, of_y.view(x.shape), beside, again=group.needs_input)
    downs_and_ups = group.factor_gradients(None if y is None else _flat(y), of_seen, of_ups)
    return of_x, None, None, *downs_and_ups


def _keep_seen(functions: BlockLinears, seen: Any) -> Callable[[], Any]:
    """What gives, in the backward, what the adapters of a group have seen; graphs keep what they need themselves."""
    if not isinstance(seen, GroupSeen):
        return lambda: seen
    keep = functions.ops.remaker.keeper
    hidden, inputs = keep(seen.hidden), [None if each is None else keep(each) for each in seen.inputs]
    ranks = seen.ranks
    return lambda: GroupSeen(hidden(), ranks, tuple(each and each() for each in inputs))


def _no_tensor() -> None:
    return None


def _take(ctx: Any) -> Any:
    """What a function has kept, which goes when its backward is done."""
    kept, ctx.kept = ctx.kept, None
    if kept is None:
        raise RuntimeError("A block's backward by kernels can run once: what it had kept is gone.")
    return kept


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _rope_gradient(x: Tensor, norm: Any, rope: Tensor, grad: Tensor, rows: ScaledRows | None) -> Tensor:
    return rotary.rms_rope_gradient(x, norm.weight, rope, grad.contiguous(), norm.eps, rows)


def _gated(x: Tensor | None, y: Tensor, gate: Tensor, *, onto: bool = False, rows: ScaledRows | None = None) -> Tensor:
    """`elementwise.gated`; `onto`: in the memory of y."""
    rows_each = y.shape[0] * y.shape[1] // (gate.shape[0] * gate.shape[1])
    return elementwise.gated(x, y, gate, rows_each, row_stride(gate), y if onto else None, rows)


def rope_again(norm: Any, rope: Tensor) -> Any:
    return lambda raw: rotary.rms_rope(raw, norm.weight, rope, norm.eps)


def norm_again(norm: Any, shape: torch.Size) -> Any:
    return lambda raw: affine(norm.weight, None, norm.eps).again(raw).view(shape)

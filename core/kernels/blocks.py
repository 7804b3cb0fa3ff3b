"""A block as a few autograd functions (`block_functions`), each with a backward written by hand.

PyTorch's autograd has work on the CPU for each operator, and for pictures that takes longer than the GPU needs. Here one
function leads from the residual stream to the attention, another back to it; PyTorch differentiates the attention itself.

Shapes: B batch, L video tokens, S tokens of a context, D width, N heads, K head dim, T timesteps per sample, M = B L.
"""

import weakref
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ..adapters.around import around_of
from ..adapters.peft_hooks import carries_lora, is_factor
from ..memory.products import PART
from ..wan.layers import PARTS, WanBlock, compute_dtype
from .block_functions import (
    BlockLinears,
    CrossIn,
    FeedForward,
    KeysAndValues,
    Noted,
    Out,
    SelfIn,
    apply,
    norm_again,
    rope_again,
)
from .linear_groups import Workspace
from .ops import KernelOps, fits


def use_functions(blocks: nn.ModuleList, ops: KernelOps) -> None:
    """Let blocks run by the functions of `block_functions`, in place, as far as `use_products` has prepared their layers.

    Others, and inputs that the kernels do not take, go the usual way.
    """
    runner = _Runner(ops)
    for block in blocks:
        vars(block)["_kernel_runner"] = runner
        block.forward = MethodType(_forward, block)
        vars(block)["run_part"] = MethodType(_run_part, block)


def _forward(
    block: WanBlock, x: Tensor, time_mod: Tensor, rope: Tensor, context: Tensor, image_context: Tensor | None = None
) -> Tensor:
    """As `WanBlock.forward`."""
    functions = vars(block)["_kernel_runner"].functions_of(block, x, time_mod, rope, context, image_context)
    if functions is None:
        return WanBlock.forward(block, x, time_mod, rope, context, image_context)
    mods = functions.start(x, time_mod)
    for part in PARTS:
        x = _run(functions, part, x, mods, rope, context, image_context)
    return x


def _run_part(
    block: WanBlock,
    part: str,
    x: Tensor,
    time_mod: Tensor,
    rope: Tensor,
    context: Tensor,
    image_context: Tensor | None = None,
) -> Tensor:
    """As `WanBlock.run_part`."""
    functions = vars(block)["_kernel_runner"].functions_of(block, x, time_mod, rope, context, image_context)
    if functions is None:
        return WanBlock.run_part(block, part, x, time_mod, rope, context, image_context)
    return _run(functions, part, x, functions.start(x, time_mod), rope, context, image_context)


class _Runner:
    """The functions of a model's blocks."""

    def __init__(self, ops: KernelOps) -> None:
        self.ops, self.workspace = ops, Workspace()
        self._functions: weakref.WeakKeyDictionary[nn.Module, BlockLinears | None] = weakref.WeakKeyDictionary()

    def functions_of(self, block: WanBlock, x: Tensor, *others: Tensor | None) -> BlockLinears | None:
        """None where they do not fit."""
        given = [each for each in others if each is not None]
        if not fits(x, *given):
            return None
        found = self._functions.get(block)
        if found is None or not found.is_current:
            found = self._functions[block] = _functions_for(self, block)
        if found is None or x.dtype != found.dtype or any(each.dtype != x.dtype for each in given[2:]):
            return None
        return found if found.is_at_work else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Runner":
        """For a copied model, which has blocks of its own."""
        found = memo[id(self)] = _Runner(self.ops)
        return found


def _functions_for(runner: _Runner, block: WanBlock) -> BlockLinears | None:
    adapted = {layer: around for layer in block.modules() if (around := around_of(layer)) is not None}
    linears = [
        layer
        for layer in block.modules()
        if hasattr(layer, "in_features") and not carries_lora(layer) and layer not in adapted
    ]
    trained = {parameter for around in adapted.values() for parameter in around.parameters}
    frozen = all(not p.requires_grad or p in trained or is_factor(name) for name, p in block.named_parameters())
    dtypes = {compute_dtype(layer) for layer in linears if vars(layer).get(PART) is not None}
    if not frozen or len(dtypes) != 1:
        return None
    try:
        return BlockLinears(block, dtypes.pop(), runner.ops, runner.workspace)
    except KeyError:
        return None


def _run(
    linears: BlockLinears,
    part: str,
    x: Tensor,
    mods: tuple[Tensor, ...],
    rope: Tensor,
    context: Tensor,
    image_context: Tensor | None,
) -> Tensor:
    """See `WanBlock.run_part`."""
    x = x.contiguous()
    if part == "self_attn":
        return _self_attn(linears, x, mods, rope.contiguous())
    if part == "cross_attn":
        return _cross_attn(linears, x, [context] if image_context is None else [context, image_context])
    y = apply(FeedForward, x, None, linears, mods[3:], linears.inner.parameters + linears.outer.parameters)
    assert isinstance(y, Tensor)
    return y


def _self_attn(linears: BlockLinears, x: Tensor, mods: tuple[Tensor, ...], rope: Tensor) -> Tensor:
    state = Noted()
    x, q, k, v = apply(SelfIn, x, None, linears, (state, mods, rope), linears.qkv.parameters)
    if state.raw is not None:
        norms, remaker = linears.block.self_attn, linears.ops.remaker
        remaker.note(q, rope_again(norms.norm_q, rope), state.raw[0])
        remaker.note(k, rope_again(norms.norm_k, rope), state.raw[1])
    y = linears.block.self_attn.attend(q, k, v)
    return apply(Out, x, y, linears, (linears.o, mods[2]), linears.o.parameters)  # type: ignore[no-any-return]


def _cross_attn(linears: BlockLinears, x: Tensor, contexts: list[Tensor]) -> Tensor:
    cross, remaker, state = linears.block.cross_attn, linears.ops.remaker, Noted()
    x, q = apply(CrossIn, x, None, linears, state, linears.cross_q.parameters)
    if state.raw is not None:
        remaker.note(q, norm_again(cross.norm_q, q.shape), state.raw[0])
    y: Tensor | None = None
    for group, tokens, name in zip(linears.contexts, contexts, ("norm_k", "norm_k_img"), strict=False):
        norm, state = getattr(cross, name), Noted()
        k, v = apply(KeysAndValues, tokens, None, linears, (state, group, norm), group.parameters)
        if state.raw is not None:
            remaker.note(k, norm_again(norm, k.shape), state.raw[0])
        found = cross.attend(q, k, v)
        y = found if y is None else y + found
    return apply(Out, x, y, linears, (linears.cross_o, None), linears.cross_o.parameters)  # type: ignore[no-any-return]

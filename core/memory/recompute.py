"""Selective gradient checkpointing (Korthikanti et al., 2022, arXiv:2205.05198): blocks that keep their costliest results.

Plain gradient checkpointing runs a whole block again in the backward pass. Here a block may keep the result of its
self-attention, or the results of its linear layers too, and runs only the rest again. Self-attention is the one part whose
cost grows with the square of the number of tokens. What its backward needs besides q, k and v (its output, and one number
for each row and head) takes about as much memory as the block's input.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

from ..errors import ConfigError
from ..torch_compat import PRODUCT_OPS, SDPA_OPS
from ..wan.model import RunBlock
from ..wan.ops import SELF_ATTENTION
from .checkpointing import contexts_for, run_checkpointed, with_checkpointing

# The forward operators of all kinds of attention, as the dispatcher names them.
ATTENTION_OPS = SDPA_OPS | {
    "flash_attn::_flash_attn_forward",  # the package flash-attn 2.7 and later
    "flash_attn_3::_flash_attn_forward",  # FlashAttention 3 from 2025-10
    "flash_attn_3::fwd",  # before
    "wan_train::flash_attn_4",
}


class Kept(NamedTuple):
    """How many blocks, the last ones, keep what they have computed."""

    attention: int = 0  # their self-attention
    linears: int = 0  # the products of their linear layers, and their self-attention
    moved: int = 0  # of those before, evenly spaced: the same, in main memory; see `offload_results`


class _KeptProducts(threading.local):
    """Whether this thread runs a block whose products are kept: an autograd thread recomputes what another one ran."""

    are_kept = False


_products = _KeptProducts()


def with_selective_recompute(
    run_block: RunBlock, blocks: Sequence[nn.Module], kept: Kept, *, width: int = 0
) -> RunBlock:
    """Wrap the block seam as `with_checkpointing` does, and let some of `blocks` keep what `kept` says.

    They are the last ones: what they keep then takes the place of what the backward's first block would have to recompute.
    They are marked by attributes, which a deepcopy of the model has too. `width` of the tokens tells the linear layers from
    the adapter's factors, which are narrower; `kept.linears` needs it. Goes inside `with_compile`. The attention backend
    "math" has no operator of its own, and is computed again. Raises ConfigError if there are not that many blocks.
    """
    mark_kept(blocks, kept)
    recompute_all = with_checkpointing(run_block)
    run_keeping = _with_products(run_block)
    products_contexts = contexts_for(partial(KeepProducts, width), __file__, width)

    def run_selective(block: nn.Module, *args: Tensor) -> Tensor:
        if getattr(block, "keeps_linears", False):
            return run_checkpointed(run_keeping, block, *args, context_fn=products_contexts)
        if getattr(block, "keeps_attention", False):
            return run_checkpointed(run_block, block, *args, context_fn=attention_contexts)
        return recompute_all(block, *args)

    return run_selective


def mark_kept(blocks: Sequence[nn.Module], kept: Kept) -> None:
    """Let the last blocks, as many as `kept` says, keep what they compute. ConfigError if there are not that many."""
    numbers = ("keep_attention", kept.attention), ("keep_linears", kept.linears), ("offload_linears", kept.moved)
    for name, number in numbers:
        if not 0 <= number <= len(blocks):
            raise ConfigError(
                f"{name} must be from 0 to {len(blocks)}, the number of the model's blocks, got {number}."
            )
    moved = moved_blocks(kept, len(blocks))
    for index, block in enumerate(blocks):
        block.keeps_attention = index >= len(blocks) - kept.attention  # type: ignore[assignment]
        block.keeps_linears = index >= len(blocks) - kept.linears  # type: ignore[assignment]
        block.moves_linears = index in moved  # type: ignore[assignment]


@lru_cache
def moved_blocks(kept: Kept, num_blocks: int) -> frozenset[int]:
    """Which blocks keep their results in main memory. ConfigError where there are too few that do not keep them otherwise.

    Those between them give the copies time. The last ones come as late as can be, but not where they are needed at once.
    """
    others = num_blocks - kept.linears
    if kept.moved > others:
        raise ConfigError(
            f"keep_linears is {kept.linears} and offload_linears {kept.moved}, but the model has {num_blocks} blocks: each "
            "keeps its results in one place."
        )
    return frozenset(number * others // kept.moved for number in range(kept.moved))


def products_are_kept() -> bool:
    """Whether what linear layers give is kept here, and must not be changed in place. Only in eager mode does it matter."""
    return _products.are_kept


def keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy that keeps every attention: for a stretch of operators that has none but self-attention."""
    del context, args, kwargs
    return CheckpointPolicy.MUST_SAVE if _name(op) in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE


class KeepSelfAttention:
    """The policy that keeps self-attention, which `mark_self_attention` has marked, for one run of a block.

    Cross-attention is cheap, and would need as many bytes again.
    """

    def __init__(self) -> None:
        self._is_next = False  # whether the next attention is self-attention

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        del context, args, kwargs
        name = _name(op)
        if name == SELF_ATTENTION:
            self._is_next = True
        elif name in ATTENTION_OPS and self._is_next:
            self._is_next = False
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE


attention_contexts = contexts_for(KeepSelfAttention, __file__, 0)


class KeepProducts(KeepSelfAttention):
    """The same, and keeps the products of the linear layers, but not the feed-forward's last, narrower than its input.

    That one is added to the residual stream, and no gradient needs it.
    """

    def __init__(self, width: int) -> None:
        """`width` of the tokens: the adapter's factors are narrower."""
        super().__init__()
        self._width = width

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = _name(op)
        if name not in PRODUCT_OPS:
            return super().__call__(context, op, *args, **kwargs)
        num_inner, num_outer = args[PRODUCT_OPS[name]].shape
        is_kept = num_outer >= num_inner >= self._width
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _name(op: Any) -> str:
    """As the dispatcher names it, without its overload."""
    return op.name().split(".")[0]


def _with_products(run_block: RunBlock) -> RunBlock:
    """The block seam that tells the layers within that their products are kept."""

    def run(block: nn.Module, *args: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return run_block(block, *args)
        before, _products.are_kept = _products.are_kept, True
        try:
            return run_block(block, *args)
        finally:
            _products.are_kept = before

    return run


def attention_bytes(tokens: int, dim: int, num_heads: int, element_size: int = 2) -> int:
    """Bytes that one block keeps more: the output [tokens, dim] and the fp32 logsumexp [num_heads, tokens].

    `tokens` of the whole batch; `element_size` of the residual stream's dtype, 2 for bf16.
    """
    return tokens * (dim * element_size + num_heads * 4)


def linears_bytes(tokens: int, keys: int, dim: int, ffn_dim: int, element_size: int = 2) -> int:
    """Bytes that one block keeps more for its products, without the attention that goes with them.

    q, k, v and o of the self-attention, q and o of the cross-attention and the feed-forward's first layer for `tokens`; k
    and v of the cross-attention for `keys`, the tokens of text and image. Both of the whole batch.
    """
    return element_size * (tokens * (6 * dim + ffn_dim) + 2 * keys * dim)

"""Selective recompute (Korthikanti et al., 2022, arXiv:2205.05198): checkpointed blocks that keep their self-attention.

Self-attention is the one part of a block whose cost grows with the square of the tokens. Its output and the logsumexp of
its rows, all that its backward needs besides q, k and v, take one block input's worth of memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ..errors import ConfigError
from .checkpointing import run_checkpointed, with_checkpointing

RunBlock = Callable[..., Tensor]

# The forward operators of all backends, as the dispatcher names them.
ATTENTION_OPS = frozenset(
    {
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "flash_attn::_flash_attn_forward",  # the package flash-attn 2.7 and later
        "flash_attn_3::_flash_attn_forward",  # FlashAttention 3 from 2025-10
        "flash_attn_3::fwd",  # before
    }
)


def with_selective_recompute(run_block: RunBlock, blocks: Sequence[nn.Module], keep_attention: int) -> RunBlock:
    """Wrap the block seam as `with_checkpointing` does, and keep the self-attention of some of `blocks`.

    `keep_attention` is their number, at `attention_bytes` each. They are the last ones: what they keep then takes the
    place of what the backward's first block would have to recompute. They are marked by an attribute, which a deepcopy
    of the model has too. Goes inside `with_compile`. The backend "math" has no such operator, and recomputes all.
    Raises ConfigError if there are not that many blocks.
    """
    if not 0 <= keep_attention <= len(blocks):
        raise ConfigError(
            f"keep_attention must be from 0 to {len(blocks)}, the number of the model's blocks, got {keep_attention}."
        )
    for index, block in enumerate(blocks):
        block.keeps_attention = index >= len(blocks) - keep_attention  # type: ignore[assignment]
    recompute_all = with_checkpointing(run_block)
    keep_contexts = partial(create_selective_checkpoint_contexts, keep_self_attention)

    def run_selective(block: nn.Module, *args: Tensor) -> Tensor:
        if getattr(block, "keeps_attention", False):
            return run_checkpointed(run_block, block, *args, context_fn=keep_contexts)
        return recompute_all(block, *args)

    return run_selective


def keep_self_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of `create_selective_checkpoint_contexts`.

    Self-attention has as many keys as queries. Cross-attention is cheap, and would need as many bytes again.
    """
    del context, kwargs
    name = op.name().split(".")[0]
    if name in ATTENTION_OPS and args[0].shape == args[1].shape:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def attention_bytes(tokens: int, dim: int, num_heads: int, element_size: int = 2) -> int:
    """Bytes that one block keeps more: the output [tokens, dim] and the fp32 logsumexp [num_heads, tokens].

    `tokens` of the whole batch; `element_size` of the residual stream's dtype, 2 for bf16.
    """
    return tokens * (dim * element_size + num_heads * 4)

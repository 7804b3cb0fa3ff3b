"""Attention kept in as many blocks as each size of clips allows: set anew at the first block of every forward."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .recompute import RunBlock


def with_attention_by_size(run_block: RunBlock, blocks: Sequence[nn.Module], kept: Mapping[int, int]) -> RunBlock:
    """Wrap the block seam, which has `with_selective_recompute` in it; goes around all else but streaming.

    `kept`: for how many blocks attention is kept, by the tokens of the whole batch. Another number of tokens gets as
    much as the next larger one, none if there is no larger one.
    """

    def run_by_size(block: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        if block is blocks[0]:
            mark_kept(blocks, kept_for(kept, x.shape[0] * x.shape[1]))
        return run_block(block, x, *rest)

    return run_by_size


def kept_for(kept: Mapping[int, int], tokens: int) -> int:
    """How many blocks keep their attention at `tokens`."""
    as_large = [size for size in kept if size >= tokens]
    return kept[min(as_large)] if as_large else 0


def mark_kept(blocks: Sequence[nn.Module], count: int) -> None:
    """Let the last `count` blocks keep their attention, as `with_selective_recompute` does."""
    for index, block in enumerate(blocks):
        block.keeps_attention = index >= len(blocks) - count  # type: ignore[assignment]

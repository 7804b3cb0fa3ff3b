"""How much blocks keep for the backward pass, chosen in every forward by the size of its clips: small ones can keep more."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .recompute import Kept, RunBlock, mark_kept


def with_kept_by_size(run_block: RunBlock, blocks: Sequence[nn.Module], kept: Mapping[int, Kept]) -> RunBlock:
    """Wrap the block seam, which has `with_selective_recompute` in it; goes around all else but streaming.

    `kept`: how many blocks keep what, by the tokens of the whole batch. Another number of tokens gets as much as the next
    larger one, nothing if there is no larger one.
    """

    def run_by_size(block: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        if block is blocks[0]:
            mark_kept(blocks, kept_for(kept, x.shape[0] * x.shape[1]))
        return run_block(block, x, *rest)

    return run_by_size


def kept_for(kept: Mapping[int, Kept], tokens: int) -> Kept:
    """What blocks keep at `tokens`."""
    as_large = [size for size in kept if size >= tokens]
    return kept[min(as_large)] if as_large else Kept()

"""How much blocks keep for the backward pass, chosen in every forward by the size of its clips: small ones can keep more."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from .recompute import Kept, RunBlock, mark_kept


def with_kept_by_size(
    run_block: RunBlock,
    blocks: Sequence[nn.Module],
    kept: Mapping[int, Kept],
    *,
    whole: Callable[[int], int] | None = None,
) -> RunBlock:
    """Wrap the block seam, which has `with_selective_recompute` in it; goes around all else but streaming.

    `kept`: how many blocks keep what, by the tokens of the whole batch. Another number of tokens gets as much as the next
    larger one, nothing if there is no larger one. `whole`: where only some tokens of a clip are run on here, the tokens of
    the clip by their number; all who share the clip then keep the same.
    """

    def run_by_size(block: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        if block is blocks[0]:
            tokens = x.shape[1] if whole is None else whole(x.shape[1])
            mark_kept(blocks, kept_for(kept, x.shape[0] * tokens))
        return run_block(block, x, *rest)

    return run_by_size


def kept_for(kept: Mapping[int, Kept], tokens: int) -> Kept:
    """What blocks keep at `tokens`."""
    as_large = [size for size in kept if size >= tokens]
    return kept[min(as_large)] if as_large else Kept()

"""Blocks whose parts are run one by one: checkpointed, each is recomputed and gone through by itself in the backward.

A checkpointed block of the 14B model takes 40 units at its backward's peak, a unit being one activation [B, L, D] in bf16;
its self-attention alone takes 21, its feed-forward 20, its cross-attention 16 (counted by the allocator, torch 2.11, CPU;
compiled 33, 15, 17, 13). In return the inputs of all parts are kept between forward and backward, three a block and not
one. Nothing is computed that would not be, and nothing is rounded differently in eager mode.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

RunPart = Callable[..., Tensor]  # (block, x, part, ...) -> x


def with_split(run_part: RunPart, parts: Sequence[str]) -> Callable[..., Tensor]:
    """A block seam that calls `run_part(block, x, part, ...)` for each of `parts` in turn, x being the result before.

    Checkpointing, compilation and offload go inside, and see a part as they would see a block; the part's name is a
    constant to a compiler, which makes a graph for each. What goes by blocks, as streaming does, goes around.
    """

    def run_split(block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        for part in parts:
            x = run_part(block, x, part, *others)
        return x

    return run_split

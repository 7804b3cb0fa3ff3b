"""Which tokens of a clip each GPU has, where several share it: the arithmetic of it, for the run and for who plans it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConfigError
from ..words import counted


def largest_part(tokens: int, frames: int, ranks: int) -> int:
    """Tokens of the rank that has most, of a clip of so many tokens in so many frames."""
    return frames * -(-(tokens // frames) // ranks)


def check_heads(num_heads: int, ranks: int) -> None:
    """ConfigError where the heads can't be dealt to the ranks evenly."""
    if ranks < 1 or num_heads % ranks:
        possible = [str(number) for number in range(1, num_heads + 1) if num_heads % number == 0]
        raise ConfigError(
            f"{ranks} GPUs can't share the tokens of a sample: the model has {num_heads} attention heads, of which each GPU "
            f"takes as many as the others. Set context_parallel to {', '.join(possible[:-1])} or {possible[-1]}."
        )


def check_grid(frame_tokens: int, ranks: int) -> None:
    """ConfigError where a frame has fewer tokens than there are ranks."""
    if frame_tokens < ranks:
        raise ConfigError(
            f"{ranks} GPUs can't share a clip with {counted(frame_tokens, 'token')} a frame: use larger clips (a "
            "token is 16 x 16 pixels, 32 x 32 in TI2V 5B), or a smaller context_parallel."
        )


@dataclass(frozen=True)
class Parts:
    """Which tokens of each frame the ranks have: one after another, the first ranks one more where they don't divide."""

    frames: int
    frame_tokens: int
    ranks: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of a frame, by rank."""
        each, more = divmod(self.frame_tokens, self.ranks)
        return tuple(each + (rank < more) for rank in range(self.ranks))

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of all frames, by rank."""
        return tuple(self.frames * size for size in self.sizes)

    def cut(self, x: Tensor, rank: int) -> Tensor:
        """Of x [B, L, ...] what is this rank's, contiguous [B, l, ...]."""
        start = sum(self.sizes[:rank])
        by_frame = x.unflatten(1, (self.frames, self.frame_tokens))
        return by_frame.narrow(2, start, self.sizes[rank]).flatten(1, 2).contiguous()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[B, l, ...] of all ranks -> [B, L, ...]."""
        return torch.cat([part.unflatten(1, (self.frames, -1)) for part in parts], dim=2).flatten(1, 2)

"""What happens between the blocks of one forward: tokens that take a route past some of them (TREAD), and a look at one.

Legend: B batch, F latent frames, A tokens of a frame, L = F A video tokens, N those that pass the blocks of a route, D width,
K head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..routes import Route


class Look:
    """What the forward sees behind one block: `WanTransformer.look`."""

    def __init__(self, block: int) -> None:
        self.block = block  # counted from 0
        self.seen: Tensor | None = None  # [B, L, D] of the newest forward that has a gradient

    def take(self) -> Tensor:
        """What was seen, [B, L, D], which is let go of here."""
        assert self.seen is not None, "nothing was looked at"
        seen, self.seen = self.seen, None
        return seen


class Walk:
    """One forward's way through the blocks."""

    def __init__(self, rope: Tensor, look: Look | None = None) -> None:
        """`rope` [2, L, K/2], that of all tokens."""
        self._all_rope = self._rope = rope
        self._look = look
        self._starts: dict[int, tuple[int, Tensor]] = {}  # first block -> last block and tokens [B, N]
        self._whole: Tensor | None = None  # [B, L, D]: what goes past the blocks of the route that is under way
        self._end, self._kept = -1, torch.empty(0)

    def take(self, routes: Sequence[Route], kept: Tensor, sizes: Sequence[int]) -> None:
        """Tokens take these routes. kept [B, sum of sizes]: the numbers of those that pass its blocks, route by route."""
        for route, tokens in zip(routes, kept.split(list(sizes), dim=1), strict=True):
            self._starts[route.first] = route.last, tokens

    def before(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, D] -> what the block is given: x [B, N, D] and its positions [2, N or B N, K/2]."""
        if block in self._starts:
            self._end, self._kept = self._starts[block]
            self._whole, x = x, _rows(x, self._kept)
            self._rope = self._all_rope.index_select(1, self._kept.flatten())
        return x, self._rope

    def after(self, block: int, x: Tensor) -> Tensor:
        """What the block gave -> x [B, L, D] for the next: at a route's end with the tokens that went past."""
        if self._whole is not None and block == self._end:
            x = self._whole.scatter(1, _columns(self._kept, x), x)
            self._whole, self._rope = None, self._all_rope
        if self._look is not None and block == self._look.block and torch.is_grad_enabled():
            self._look.seen = x
        return x


def _rows(x: Tensor, tokens: Tensor) -> Tensor:
    """x [B, L, D], tokens [B, N] -> [B, N, D]. By `index_select`, whose backward, unlike that of `gather`, keeps no x."""
    batch, length, _ = x.shape
    first = torch.arange(batch, device=tokens.device).unsqueeze(1) * length
    return x.flatten(0, 1).index_select(0, (tokens + first).flatten()).unflatten(0, tokens.shape)


def _columns(tokens: Tensor, x: Tensor) -> Tensor:
    """tokens [B, N] as an index into x [B, any, D]."""
    return tokens.unsqueeze(2).expand(-1, -1, x.shape[2])

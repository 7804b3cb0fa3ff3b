"""Context parallel: the tokens of one sample over several GPUs, by the way of DeepSpeed-Ulysses (arXiv:2309.14509).

Each rank of a group keeps its part of the tokens, and the blocks run on it: everything in them but self-attention looks at one
token at a time. In self-attention the ranks exchange queries, keys and values, all tokens of a share of the heads for some
tokens of all heads; they attend, and exchange the result back. After the head each rank gathers all tokens.

Why this way: attention stays whole, so that every kind of it serves as it is (flash-attn, cuDNN's, kept results, our kernels),
with its own rounding. PyTorch's `context_parallel` (torch.distributed.tensor.experimental) passes keys and values around a ring
instead: it takes the place of three backends of its own, wants equal parts, and sends more bytes with each further GPU, where
the bytes of an exchange get fewer. The ring's gain is that heads need not divide; Wan has 12, 24 or 40. Diffusers and xDiT
offer both, and exchange first. `torch.distributed.nn` has no exchange in the shape that is needed, and its collectives wait
for each other; so three of them go out here at once, each while the next one is packed.

The parts are places in the picture and not stretches of time: every rank has the same tokens of each frame. So a rank's
tokens go with the timesteps of all frames, [B, F, 6, D] as they are, and parts of different sizes differ by one token a frame.

Gradients: each rank computes the whole loss of the sample. The gather's backward takes the rank's own tokens, the exchanges
carry the rest, and what a rank finds for a weight is what its tokens have to do with it. The sum over the group is the
gradient.

Shapes: B batch, F frames, A tokens of a frame, L = F A tokens, l those of this rank, N heads, K head dim, W ranks of the group.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .parts import Parts, check_grid, check_heads
from .world import World

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, L, N, K], k and v [B, L, N, K] -> [B, L, N, K]


class TokenShare:
    """This rank's share of the tokens, for a model: `WanTransformer.tokens`. One forward after another, in each rank the same.

    All ranks of the group must run the same forwards and backwards in the same order, with the same inputs.
    """

    def __init__(self, world: World, num_heads: int) -> None:
        """ConfigError where the heads can't be dealt to the ranks of a group."""
        check_heads(num_heads, world.context)
        self._rank, self._ranks, self._group = world.context_rank, world.context, world.context_group
        self._progress = world.progress
        self._parts: dict[int, Parts] = {}  # of the newest forward, by this rank's tokens
        self._is_on = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it this rank runs whole samples alone, as for a preview that the other ranks don't make."""
        before, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = before

    def split(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """x [any, L, ...], the tokens of a grid (F, H, W) -> this rank's [any, l, ...]. ConfigError for too small a grid."""
        if not self._is_on:
            return x
        frames, frame_tokens = grid[0], grid[1] * grid[2]
        check_grid(frame_tokens, self._ranks)
        parts = Parts(frames, frame_tokens, self._ranks)
        self._parts[parts.tokens[self._rank]] = parts
        return parts.cut(x, self._rank)

    def gather(self, x: Tensor) -> Tensor:
        """This rank's x [B, l, D] -> that of all ranks [B, L, D]; in the backward a rank's own part of the gradient."""
        return _Gather.apply(x, self, self.parts_of(x.shape[1])) if self._is_on else x  # type: ignore[return-value]

    def attending(self, attend: Attend) -> Attend:
        """`attend` for this rank's q, k and v [B, l, N, K], which look at all ranks' tokens."""

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not self._is_on:
                return attend(q, k, v)
            parts = self.parts_of(q.shape[1])
            q, k, v = _ToHeads.apply(self, parts, q, k, v)  # type: ignore[misc]  # each [B, L, N/W, K]
            (y,) = _ToTokens.apply(self, parts, attend(q, k, v))  # type: ignore[misc]
            return y  # [B, l, N, K]

        return run

    def whole(self, tokens: int) -> int:
        """Tokens of the clip of which this rank has so many."""
        return sum(self.parts_of(tokens).tokens) if self._is_on else tokens

    def parts_of(self, tokens: int) -> Parts:
        """The parts of the clip of which this rank has so many tokens: also in a backward, which runs a block again."""
        return self._parts[tokens]

    def all_parts(self, x: Tensor, parts: Parts) -> list[Tensor]:
        """x [B, l, D] of all ranks, by rank."""
        largest = max(parts.tokens)
        padded = (
            x.contiguous() if x.shape[1] == largest else torch.nn.functional.pad(x, (0, 0, 0, largest - x.shape[1]))
        )
        found = x.new_empty(self._ranks, *padded.shape)
        with self._progress.exchanging():
            dist.all_gather_into_tensor(found.flatten(0, 1), padded, group=self._group)
        return [each[:, :tokens] for each, tokens in zip(found.unbind(0), parts.tokens, strict=True)]

    def own_part(self, x: Tensor, parts: Parts) -> Tensor:
        """Of x [B, L, D] this rank's [B, l, D]."""
        return parts.cut(x, self._rank)

    def to_heads(self, tensors: Sequence[Tensor], parts: Parts) -> list[Tensor]:
        """Each [B, l, N, K], of this rank's tokens -> [B, L, N/W, K], of its heads: tokens by rank."""
        own = parts.tokens[self._rank]
        send, receive = [own] * self._ranks, list(parts.tokens)
        with self._progress.exchanging():
            under_way = [self._exchange(_by_rank_of_head(x, self._ranks), send, receive) for x in tensors]
            return [_arrived(each).transpose(0, 1).contiguous() for each in under_way]

    def to_tokens(self, tensors: Sequence[Tensor], parts: Parts) -> list[Tensor]:
        """Each [B, L, N/W, K], of this rank's heads, tokens by rank -> [B, l, N, K], of its tokens."""
        own = parts.tokens[self._rank]
        send, receive = list(parts.tokens), [own] * self._ranks
        with self._progress.exchanging():
            under_way = [self._exchange(x.transpose(0, 1).contiguous(), send, receive) for x in tensors]
            arrived = (_arrived(each).unflatten(0, (self._ranks, own)) for each in under_way)  # [W, l, B, N/W, K]
            return [each.permute(2, 1, 0, 3, 4).flatten(2, 3) for each in arrived]

    def _exchange(self, x: Tensor, send: list[int], receive: list[int]) -> tuple[Tensor, Any]:
        """Send so many rows of x to each rank; what will have arrived from each, and the work that is under way."""
        found = x.new_empty(sum(receive), *x.shape[1:])
        work = dist.all_to_all_single(found, x, receive, send, group=self._group, async_op=True)
        return found, work

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenShare":
        """A copied model has the same."""
        return self


def _by_rank_of_head(x: Tensor, ranks: int) -> Tensor:
    """[B, l, N, K] -> [W l, B, N/W, K]."""
    return x.unflatten(2, (ranks, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1).contiguous()


def _arrived(under_way: tuple[Tensor, Any]) -> Tensor:
    found, work = under_way
    work.wait()
    return found


class _ToHeads(torch.autograd.Function):
    """One node for queries, keys and values, so that in the backward, too, all ranks exchange in one order."""

    @staticmethod
    def forward(ctx: Any, share: TokenShare, parts: Parts, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.share, ctx.parts = share, parts
        return tuple(share.to_heads(tensors, parts))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.share.to_tokens(grads, ctx.parts)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: TokenShare, parts: Parts, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.share, ctx.parts = share, parts
        return tuple(share.to_tokens(tensors, parts))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.share.to_heads(grads, ctx.parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: TokenShare, parts: Parts) -> Tensor:  # type: ignore[override]
        ctx.share, ctx.parts = share, parts
        return parts.join(share.all_parts(x, parts))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share.own_part(grads[0], ctx.parts), None, None

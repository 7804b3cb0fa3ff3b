"""Gradient checkpointing of a block's three parts, one after another: never more than one part is recomputed at a time.

At its backward's peak a checkpointed block of the 14B model takes 40 units, a unit being one activation [B, L, D] in bf16. Its
self-attention alone takes 21, its feed-forward 20, its cross-attention 16 (counted by the allocator, torch 2.11, CPU; compiled
33, 15, 17, 13). Between forward and backward one input for each block is kept, as in plain checkpointing. The backward runs
the parts again to find their inputs, and keeps the result of the self-attention. Then it recomputes the last part and goes
through it, then the one before, then the first. So queries, keys, values and the cross-attention are computed once more than
in plain checkpointing, and self-attention is not.

A block that keeps its self-attention from the forward on keeps the input of its second part too. Random numbers, as for
dropout, are repeated in eager mode alone: a compiled forward and its recompute are two graphs, with numbers of their own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..wan.model import RunBlock
from .checkpointing import run_checkpointed
from .recompute import attention_contexts

RunPart = Callable[..., Tensor]  # (block, x, part, time_mod, ...) -> x
RunPartAgain = Callable[..., Tensor]  # (block, x, part, recomputed, ...) -> x
Wrap = Callable[[RunBlock], RunBlock]


def with_recompute(run_part: RunPart) -> RunPartAgain:
    """`run_part` with one more argument: whether the part keeps its input alone, and the output of self-attention.

    A compiler goes around it: the part's name and the argument are constants to it, and make a graph each.
    """

    def run(block: nn.Module, x: Tensor, part: str, recomputed: bool, *others: Tensor) -> Tensor:
        if recomputed:
            return run_checkpointed(run_part, block, x, part, *others, context_fn=attention_contexts)
        return run_part(block, x, part, *others)

    return run


def with_split(run_part: RunPartAgain, parts: Sequence[str], wrap: Wrap | None = None) -> RunBlock:
    """A block seam that calls `run_part(block, x, part, recomputed, ...)` for each of `parts` in turn.

    `wrap` is put around each stretch of parts of which only the input is kept, as offload is: (block, x, ...) -> x.
    Streaming goes around the whole. Gradients of parameters are added to their `grad` within the backward of each block, so
    torch.autograd.grad does not find them; those of the inputs are returned as always.
    """
    wrap = wrap or _same
    whole, rest = wrap(_Stretch(run_part, parts).run), wrap(_Stretch(run_part, parts[1:]).run)
    first = wrap(lambda block, x, *others: run_part(block, x, parts[0], True, *others))

    def run_split(block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        if getattr(block, "keeps_attention", False) and torch.is_grad_enabled():
            return rest(block, first(block, x, *others), *others)
        return whole(block, x, *others)

    return run_split


class _Stretch:
    """Some parts in a row, of which only the input is kept."""

    def __init__(self, run_part: RunPartAgain, parts: Sequence[str]) -> None:
        self._run_part, self._parts = run_part, parts

    def run(self, block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """The result of the last part."""
        if not torch.is_grad_enabled():
            return self._run(None, block, x, *others)
        # PyTorch calls the first form of checkpointing without gradients in the forward, and with them in the backward, so
        # that each can go its own way. It needs an input that has a gradient: the first block's x has none.
        gate = torch.empty(0, requires_grad=True)
        result = checkpoint(self._run, gate, block, x, *others, use_reentrant=True)
        assert isinstance(result, Tensor)
        return result

    def _run(self, _gate: Tensor | None, block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """In a backward all parts but the last keep their input and self-attention, the last all that it needs."""
        again = torch.is_grad_enabled()
        if not again:
            x = x.detach()  # the first block's needs no gradient: one graph for all
        for part in self._parts[:-1]:
            x = self._run_part(block, x, part, again, *others)
        return self._run_part(block, x, self._parts[-1], False, *others)


def _same(run_block: RunBlock) -> RunBlock:
    return run_block

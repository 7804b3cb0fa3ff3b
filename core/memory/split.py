"""Blocks whose backward goes through their parts one by one, so that never more than one part is recomputed at a time.

A checkpointed block of the 14B model takes 40 units at its backward's peak, a unit being one activation [B, L, D] in bf16;
its self-attention alone takes 21, its feed-forward 20, its cross-attention 16 (counted by the allocator, torch 2.11, CPU;
compiled 33, 15, 17, 13). Between forward and backward one input a block is kept, as by plain checkpointing: the backward
finds the inputs of the parts by running them again, keeps what the self-attention gave, and then recomputes and goes
through the last part, the one before it, the first. So queries, keys and values and the cross-attention are computed once
more than by plain checkpointing, and attention among the video tokens is not.

A block that keeps its self-attention from the forward on keeps the input of its second part too. Random numbers, as for
dropout, come again in eager mode alone: a compiled forward and its recompute are two graphs, with numbers of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from .checkpointing import run_checkpointed
from .recompute import keep_self_attention

RunBlock = Callable[..., Tensor]  # (block, x, ...) -> x
RunPart = Callable[..., Tensor]  # (block, x, part, ...) -> x
RunPartAgain = Callable[..., Tensor]  # (block, x, part, recomputed, ...) -> x
Wrap = Callable[[RunBlock], RunBlock]


def with_recompute(run_part: RunPart) -> RunPartAgain:
    """`run_part` with one more argument: whether the part keeps its input alone, and the output of self-attention.

    A compiler goes around it: the part's name and the argument are constants to it, and make a graph each.
    """
    contexts = partial(create_selective_checkpoint_contexts, keep_self_attention)

    def run(block: nn.Module, x: Tensor, part: str, recomputed: bool, *others: Tensor) -> Tensor:
        if recomputed:
            return run_checkpointed(run_part, block, x, part, *others, context_fn=contexts)
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
            return self.forward(block, x, *others)
        # Without an input that has a gradient autograd would not call it: the first block's x has none.
        gate = torch.empty(0, requires_grad=True)
        result = _InParts.apply(gate, self, block, x, *others)
        assert isinstance(result, Tensor)
        return result

    def forward(self, block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """All parts, without anything kept."""
        for part in self._parts:
            x = self._run_part(block, x, part, False, *others)
        return x

    def forward_again(self, block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """All parts, the last with all that its backward needs, those before with their input and self-attention."""
        for part in self._parts[:-1]:
            x = self._run_part(block, x, part, True, *others)
        return self._run_part(block, x, self._parts[-1], False, *others)


class _InParts(torch.autograd.Function):
    """A stretch whose backward runs it again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, stretch: _Stretch, block: nn.Module, *inputs: Tensor) -> Tensor:
        del gate
        ctx.stretch, ctx.block = stretch, block
        ctx.random = _random_states(inputs[0].device)
        ctx.save_for_backward(*inputs)
        x, *others = inputs
        return stretch.forward(block, x.detach(), *others)  # the first block's x needs no gradient: one graph for all

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(saved, needed, strict=True)]
        with torch.enable_grad(), _as_then(ctx.random, inputs[0].device):
            result = ctx.stretch.forward_again(ctx.block, *inputs)
            torch.autograd.backward(result, grads[0])
        return None, None, None, *(x.grad for x in inputs)


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the CPU's generator and of the device's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _as_then(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """With the generators in `states` of `_random_states`: an adapter's dropout drops the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(states[0])
        if devices:
            torch.cuda.set_rng_state(states[1], device)
        yield


def _same(run_block: RunBlock) -> RunBlock:
    return run_block

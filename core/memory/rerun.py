"""Gradient checkpointing for the mode "kernels", whose blocks run in plain Python; `checkpointing` is for all others.

A block's backward either runs the block again, or has kept its costly results from the forward. Results that are quickly
made are made again only when they are needed (`remaker`). The last product of a block that runs again is left out, because
nothing reads it. PyTorch's own checkpoint looks at every operator to keep some results; here only the attention is watched.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.utils.checkpoint import create_selective_checkpoint_contexts, get_device_states, set_device_states

from ..wan.layers import Attend
from ..wan.model import RunBlock
from .entry import entry
from .offload_results import BlockResults, ResultOffload
from .recompute import keep_attention
from .remaker import BlockInput, Own, Remaker

Keep = Literal["nothing", "attention", "all", "moved"]  # moved: all, and large results wait in main memory


class _Attention(threading.local):
    """How this thread's self-attention is to be run: (mode, whether it is for the first time)."""

    now: tuple[AbstractContextManager[Any], bool] | None = None


_attention = _Attention()


def keepable(attend: Attend) -> Attend:
    """`attend` for self-attention, whose result `Rerun` can keep."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if _attention.now is None:
            return attend(q, k, v)
        mode, is_first = _attention.now
        if not is_first:
            with mode:
                return attend(q, k, v)
        # With gradients, without which it would not give all that its backward needs. What autograd would keep of this run,
        # which nobody goes back through, is dropped: the kept results hold its node, and so q, k and v.
        with torch.enable_grad(), mode, saved_tensors_hooks(_drop, _drop):
            return attend(q.detach().requires_grad_(), k.detach(), v.detach()).detach()

    return run


def _drop(_tensor: object) -> Any:
    """In the place of a tensor that no backward asks for."""


class Rerun:
    """Runs blocks, or parts of them, so that little is kept for their backward."""

    def __init__(self, remaker: Remaker, moved: ResultOffload | None = None) -> None:
        """`remaker`: those in which the block's own arithmetic notes what is quickly made. `moved` is for `keep` "moved"."""
        self.remaker = remaker
        self._moved = moved
        self._parameters: WeakKeyDictionary[nn.Module, tuple[nn.Parameter, ...]] = WeakKeyDictionary()

    def __call__(
        self, run: RunBlock, keep: Keep, last: nn.Module | None, block: nn.Module, x: Tensor, *others: Any
    ) -> Tensor:
        """run(block, x, *others), which keeps x, and what `keep` says. Of `others` none gets a gradient.

        `last`: the layer whose product is added to the residual stream at the end.
        """
        if not torch.is_grad_enabled():
            return run(block, x, *others)
        trained = self._trained(block)
        if not (x.requires_grad or trained):
            return run(block, x, *others)
        call = _Call(self.remaker, self._moved, run, keep, last, block, x, others)
        return _Run.apply(x, call, *trained)  # type: ignore[no-any-return]

    def _trained(self, block: nn.Module) -> tuple[nn.Parameter, ...]:
        if block not in self._parameters:
            self._parameters[block] = tuple(p for p in block.parameters() if p.requires_grad)
        return self._parameters[block]


class _Call:
    """One run of a block, from its forward to its backward."""

    def __init__(
        self,
        remaker: Remaker,
        moved: ResultOffload | None,
        run: RunBlock,
        keep: Keep,
        last: nn.Module | None,
        block: nn.Module,
        x: Tensor,
        others: tuple[Any, ...],
    ) -> None:
        self._remaker, self._run, self._last, self._block, self._others = remaker, run, last, block, others
        self._keep: Keep = keep
        self._moved = moved
        self._results: BlockResults | None = None
        self._kept: _BlockRun | None = None
        self._modes: Any = None
        self._random = None if keep in ("all", "moved") else _Random.of(block, x)

    def forward(self, x: Tensor) -> Tensor:
        if self._moved is not None:
            if self._keep == "moved":
                return self._forward_moved(self._moved, x)
            self._moved.follow()
        if self._keep == "all":
            self._kept, y = _run_block(self._remaker, self._run, None, self._block, x, self._others)
            return y
        if self._keep == "attention":
            self._modes = create_selective_checkpoint_contexts(keep_attention)
            return self._attending(True, self._run, self._block, x, *self._others)
        return self._run(self._block, x, *self._others)

    def _forward_moved(self, moved: ResultOffload, x: Tensor) -> Tensor:
        self._results = results = moved.start(self._block, self._others)
        inputs = self._remaker, self._run, None, self._block, x, self._others
        self._kept, y = _run_block(*inputs, own=results.own)
        results.close()
        return y

    def backward(self, x: Tensor, grad: Tensor, parameters: tuple[Tensor, ...], *, of_x: bool) -> tuple[Any, ...]:
        if self._moved is not None:
            self._moved.return_to(self._results)
        graph, self._kept = self._kept, None
        if graph is None:
            random = nullcontext() if self._random is None else self._random
            with random:
                inputs = self._remaker, self._run, self._last, self._block, x, self._others
                graph, _ = self._attending(False, _run_block, *inputs) if self._modes else _run_block(*inputs)
        graph.given.x = x
        wanted = [graph.start, *parameters] if of_x else list(parameters)
        found = torch.autograd.grad([graph.end], wanted, [grad], allow_unused=True)
        return found if of_x else (None, *found)

    def _attending(self, is_first: bool, act: Callable[..., Any], *inputs: Any) -> Any:
        before, _attention.now = _attention.now, (self._modes[0 if is_first else 1], is_first)
        try:
            return act(*inputs)
        finally:
            _attention.now = before


class _BlockRun(NamedTuple):
    """What is left of a block's run with gradients, without its result, which is the next block's input."""

    given: BlockInput
    start: GradientEdge  # where its input's gradient arrives
    end: GradientEdge  # where its result's comes in


def _run_block(
    remaker: Remaker,
    run: RunBlock,
    unread: nn.Module | None,
    block: nn.Module,
    x: Tensor,
    others: tuple[Any, ...],
    own: Own | None = None,
) -> tuple[_BlockRun, Tensor]:
    """A block's run with gradients, and its result without them."""
    given = BlockInput()
    with torch.enable_grad():
        # x may leave the device until the backward; in its history a part of a block would find the block's parameters again.
        start = entry(x)
        with remaker.keep(x, given, unread, own):
            y = run(block, start, *others)
        return _BlockRun(given, get_gradient_edge(start), get_gradient_edge(y)), y.detach()


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.call, ctx.parameters = call, parameters
        return call.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (x,), call = ctx.saved_tensors, ctx.call
        of_x, *of_parameters = call.backward(x, *grads, ctx.parameters, of_x=ctx.needs_input_grad[0])
        return of_x, None, *of_parameters


_droppers: WeakKeyDictionary[nn.Module, list[nn.Dropout]] = WeakKeyDictionary()


class _Random:
    """Random numbers as they were, on the CPU and on the device of x: those of dropout come again."""

    def __init__(self, x: Tensor) -> None:
        self._cpu, self._devices = torch.get_rng_state(), get_device_states(x)
        self._forks: Any = None

    @classmethod
    def of(cls, block: nn.Module, x: Tensor) -> "_Random | None":
        """None for a block that needs none."""
        drops = _droppers.get(block)
        if drops is None:  # looking through a block takes as long as some of its kernels
            drops = _droppers[block] = [layer for layer in block.modules() if isinstance(layer, nn.Dropout)]
        return cls(x) if any(layer.p > 0 and layer.training for layer in drops) else None

    def __enter__(self) -> None:
        self._forks = torch.random.fork_rng(devices=self._devices[0])
        self._forks.__enter__()
        torch.set_rng_state(self._cpu)
        set_device_states(*self._devices)

    def __exit__(self, *error: object) -> None:
        self._forks.__exit__(*error)

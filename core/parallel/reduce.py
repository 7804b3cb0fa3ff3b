"""Gradients added up over the ranks, while the backward still goes on.

Gradients lie in a few flat fp32 buffers ("buckets", as in PyTorch's DistributedDataParallel: Li et al., 2020,
arXiv:2006.15704), made once. A bucket is sent when the gradients in it are complete, always in the same order on all ranks:
the last layers first, whose gradients the backward finds first. Where the links are so fast that sending takes next to
nothing, it begins after the backward: looking at every gradient as it comes takes the host longer than that.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed as dist

from ..torch_compat import foreach_copy_
from .world import World

BUCKET_BYTES = 25 * 2**20  # as DistributedDataParallel has it: large enough for the links, small enough to begin early


SHORT_S = 0.01  # that sending may take after the backward: less than it would cost to send during it


def reduction_bytes(num_parameters: int, size: int) -> int:
    """Bytes on each of `size` ranks that the buffers take all the time.

    They are the gradients where these are sent during the backward; else the gradients take as much beside them.
    """
    return 4 * num_parameters if size > 1 else 0


def sends_early(num_parameters: int, size: int, link: float) -> bool:
    """Whether gradients are sent during the backward. `link`: bytes per second between the ranks; 0: not known."""
    return not link or 2 * (size - 1) / size * 4 * num_parameters / link > SHORT_S


@torch.no_grad()
def copy_from_first(tensors: Sequence[torch.Tensor], world: World) -> None:
    """The first rank's numbers on all ranks, in place: what cards of two kinds draw need not be the same."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


class GradientSum:
    """Adds up the gradients of `parameters`, fp32, over all ranks of `world`: those of other samples, and of other tokens.

    `begin`, then the backwards of a step, then `finish` with the sums in the parameters' `grad`. On every rank they are the
    same to the bit.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        world: World,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        early: bool = True,
    ) -> None:
        """`early`: gradients are sent during the backward, see `sends_early`."""
        self._world, self._early = world, early
        self._buckets = [
            _Bucket(part) for part in _cut(list(reversed(parameters)), bucket_bytes // 4)
        ]  # from the last layer on
        self._next = len(self._buckets)  # the first bucket that is not sent; all are, between two steps
        self._waiting: list[Any] = []
        self._left: dict[int, int] = {}  # backwards that are still to add to a parameter's gradient
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters if early else ():
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))
            world.add_(bucket.flat)  # of zeros: opens the links now, which takes time and memory

    @property
    def device(self) -> torch.device:
        """Where the gradients lie."""
        return self._buckets[0].flat.device

    def begin(self, backwards: int = 0) -> None:
        """Before the first backward of a step. `backwards`: how many it has on this rank, each through all parameters.

        With 0 it is not known: nothing is sent before `finish`. Where CUDA graphs replay a backward nobody learns when a
        gradient is there, and that is so as well.
        """
        self._next, self._waiting = 0, []
        for bucket in self._buckets if self._early else ():
            bucket.lay_out()
        self._left = {id(p): backwards for b in self._buckets for p in b.parameters} if backwards else {}

    def finish(self) -> None:
        """After the last backward: send what is not sent, and wait for all of it (on a GPU: its stream does)."""
        self._left = {}
        while self._next < len(self._buckets):
            self._buckets[self._next].collect()
            self._send()
        self._wait()

    def finish_without(self) -> None:
        """After a step that broke off on this rank: the others get zeros, so that they need not wait. Takes no memory."""
        self._left = {}
        while self._next < len(self._buckets):
            self._buckets[self._next].flat.zero_()
            self._send()
        self._wait()

    def _arrived(self, number: int, parameter: torch.Tensor) -> None:
        """A backward has added to the gradient."""
        if id(parameter) not in self._left:
            return
        assert number >= self._next, "a gradient grew after it was sent"
        self._left[id(parameter)] -= 1
        bucket = self._buckets[number]
        if self._left[id(parameter)] == 0:
            bucket.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._buckets[self._next].collect()
            self._send()

    def _send(self) -> None:
        """The next bucket."""
        bucket = self._buckets[self._next]
        self._next += 1
        self._waiting.append(dist.all_reduce(bucket.flat, async_op=True))

    def _wait(self) -> None:
        with self._world.progress.waiting():
            for work in self._waiting:
                work.wait()
        self._waiting = []


class _Bucket:
    """Some parameters, and one buffer for their gradients."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float32, device=parameters[0].device)
        self.views = [
            part.view_as(parameter) for part, parameter in zip(self.flat.split(sizes), parameters, strict=True)
        ]
        self.missing = len(self.parameters)

    def lay_out(self) -> None:
        """Gradients of zero in the buffer, to which backwards add."""
        self.flat.zero_()
        self.missing = len(self.parameters)
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    @torch.no_grad()
    def collect(self) -> None:
        """Have all gradients in the buffer: CUDA graphs, and backwards that found none laid out, have theirs elsewhere."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:  # of a parameter that no backward came to
                view.zero_()
                parameter.grad = view
        pairs = [
            (parameter, view, parameter.grad)
            for parameter, view in zip(self.parameters, self.views, strict=True)
            if parameter.grad is not None and parameter.grad is not view
        ]
        if pairs:
            foreach_copy_([view for _, view, _ in pairs], [grad for _, _, grad in pairs])
        for parameter, view, _ in pairs:
            parameter.grad = view


def _cut(parameters: list[torch.nn.Parameter], numbers: int) -> list[list[torch.nn.Parameter]]:
    """In parts of about so many numbers, in their order."""
    parts: list[list[torch.nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room and (not parts or parts[-1]):
            parts.append([])
            room = numbers
        parts[-1].append(parameter)
        room -= parameter.numel()
    return parts

"""Linear layers that see the same input, such as q, k and v, with their adapters: forward and backward without autograd.

Legend: M rows of the input, r rank, R sum of ranks; A [r, in], B [out, r].
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.peft_hooks import carries_lora, factors_of, is_at_work
from ..memory.products import PART, LinearProduct, part_of
from ..torch_compat import foreach_copy_, mm_to_fp32


class LinearGroup:
    """One layer or some. Its factors are there in the dtype of the arithmetic after `Factors.load`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Raises KeyError for a layer that `use_products` has passed over."""
        self.layers = tuple(layers)
        self.parts: tuple[LinearProduct, ...] = tuple(part_of(layer) for layer in layers)
        self.scales: list[float | None] = []
        self.parameters: list[nn.Parameter] = []
        for layer in layers:
            factors = factors_of(layer) if carries_lora(layer) else None
            self.scales.append(factors.scale if factors else None)
            if factors:
                self.parameters += (factors.down, factors.up)
        self.ranks = [len(down) for down in self.parameters[::2]]
        self.down: Any = None  # all A as one matrix [R, in]
        self.down_t: Any = None
        self.ups: list[Tensor] = []
        self.ups_t: list[Tensor] = []

    @property
    def is_current(self) -> bool:
        """Whether the layers are those that they were, and their adapters at work."""
        return all(
            vars(layer).get(PART) is part and (scale is None or is_at_work(layer))
            for layer, part, scale in zip(self.layers, self.parts, self.scales, strict=True)
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[list[Tensor | None], Tensor | None]:
        """x [M, in] -> each result [M, out], None for one that nobody reads; and x A^T [M, R]."""
        hidden = torch.mm(x, self.down_t) if self.ranks else None
        each, results = self._each(hidden), []
        for part, scale, (h, number) in zip(self.parts, self.scales, each, strict=True):
            if part.is_unread(part.layer):
                results.append(None)
                continue
            y = part.product.forward(x)
            if scale is not None:
                y.addmm_(h, self.ups_t[number], alpha=scale)
            results.append(y)
        return results, hidden

    def backward(
        self, grads: Sequence[Tensor], hidden: Tensor | None, *, of_x: bool
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """The gradients of x [M, in], where `of_x`, of x A^T [M, R], and of each B."""
        of_hidden = None if hidden is None else torch.empty_like(hidden)
        found: Tensor | None = None
        of_ups: list[Tensor] = []
        each = zip(self.parts, self.scales, grads, self._each(hidden), self._each(of_hidden), strict=True)
        for part, scale, grad, (h, number), (of_h, _) in each:
            if scale is not None:
                _product(grad, self.ups[number], scale, of_h)
                of_ups.append(_wide_product(grad.t(), h, scale))
            if of_x:
                found = part.product.gradient(grad, found)
        if found is not None and of_hidden is not None:
            found.addmm_(of_hidden, self.down)
        return found, of_hidden, of_ups

    def factor_gradients(self, x: Tensor | None, of_hidden: Tensor | None, of_ups: list[Tensor]) -> list[Tensor]:
        """Of `parameters`, in their order; x [M, in]."""
        if of_hidden is None or x is None:
            return []
        of_downs = _wide_product(of_hidden.t(), x, 1)
        downs = (of_downs,) if len(self.ranks) == 1 else of_downs.split(self.ranks)
        return [each for pair in zip(downs, of_ups, strict=True) for each in pair]

    def _each(self, hidden: Tensor | None) -> list[tuple[Any, int]]:
        """A layer's part of [M, R], and the number of its factors."""
        if hidden is None:
            return [(None, 0)] * len(self.parts)
        pieces = (hidden,) if len(self.ranks) == 1 else hidden.split(self.ranks, dim=1)
        numbers = iter(range(len(pieces)))
        return [(None, 0) if scale is None else (pieces[n := next(numbers)], n) for scale in self.scales]


class Workspace:
    """The factors of one block at a time in the dtype of the arithmetic: one launch for all of them.

    Kernels follow each other on one stream, so that the memory is free for the next block when its factors come. They come
    in each block's forward, also into a CUDA graph of it, and again for its backward if others were there in between.
    """

    def __init__(self) -> None:
        self._owner: object = None
        self._memory: dict[Any, list[tuple[Tensor | None, list[Tensor]]]] = {}

    def load(self, owner: object, groups: Sequence[LinearGroup], like: Tensor, *, fresh: bool) -> None:
        """Bring the factors of `groups` in, where they are not there; `fresh`: whatever is there."""
        if self._owner is owner and not fresh:
            return
        self._owner = None
        shapes = tuple(tuple(p.shape) for group in groups for p in group.parameters)
        if not shapes:
            return
        key = like.dtype, like.device, shapes
        memory = self._memory.get(key)
        if memory is None:
            memory = self._memory[key] = [_memory_for(group, like) for group in groups]
        views, sources = [], []
        for group, (down, ups) in zip(groups, memory, strict=True):
            if group.down is not down:
                group.down, group.ups = down, ups
                group.down_t = None if down is None else down.t()
                group.ups_t = [up.t() for up in ups]
            if down is not None:
                views += list(down.split(group.ranks)) if len(ups) > 1 else [down]
                sources += group.parameters[::2]
                views += ups
                sources += group.parameters[1::2]
        with torch.no_grad():
            foreach_copy_(views, sources)
        self._owner = owner


def _memory_for(group: LinearGroup, like: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    if not group.ranks:
        return None, []
    down = like.new_empty((sum(group.ranks), group.parameters[0].shape[1]))
    return down, [like.new_empty(up.shape) for up in group.parameters[1::2]]


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale a @ b, scaled before it is rounded."""
    if scale == 1:
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    nothing = a.new_empty(())  # which beta = 0 leaves unread
    return torch.addmm(nothing, a, b, beta=0, alpha=scale, out=out)


def _wide_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a @ b in fp32, the factors' own dtype, where the device's product gives that; else in the dtype of a."""
    if not (a.is_cuda and gives_fp32(a.device, a.dtype)):
        return _product(a, b, scale)
    found = mm_to_fp32(a, b)
    return found if scale == 1 else found.mul_(scale)


@lru_cache
def gives_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of numbers of `dtype` can be had in fp32 without a pass of its own; found by trying."""
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        found = mm_to_fp32(ones, ones)
    except (RuntimeError, TypeError):
        return False
    return dtype != torch.float32 and found.dtype == torch.float32

"""Linear layers that see the same input, such as q, k and v, with their adapters: forward and backward without autograd.

Legend: M rows of the input, those of one sample after those of another; r rank, R sum of ranks; A [r, in], B [out, r].
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..adapters.peft_hooks import carries_lora, factors_of, is_at_work
from ..memory.products import PART, LinearProduct, part_of
from ..torch_compat import foreach_copy_, mm_to_fp32
from .linears import Fp8Product
from .rows import ScaledRows


class GroupSeen(NamedTuple):
    """What the adapters of a group see of its input x [M, in]; in a backward `hidden` is the gradient of it."""

    hidden: Tensor  # x A^T [M, R], after what leaves out some of it
    ranks: Tensor | None = None  # what the ranks of each sample are multiplied with [samples, 1, R]; None: all are 1
    inputs: tuple[Tensor | None, ...] = ()  # of each adapter the numbers of x that are left [M, in]; (): all, for all


class LinearGroup:
    """One layer or some. Its factors are there in the dtype of the arithmetic after `Workspace.load`."""

    has_graphs = False

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Raises KeyError for a layer that `use_products` has passed over."""
        self.layers = tuple(layers)
        self.parts: tuple[LinearProduct, ...] = tuple(part_of(layer) for layer in layers)
        self.scales: list[float | None] = []
        self.parameters: list[nn.Parameter] = []
        self.dropouts: list[nn.Dropout | None] = []  # of each adapter
        self.drops: list[nn.Module | None] = []
        for layer in layers:
            factors = factors_of(layer) if carries_lora(layer) else None
            self.scales.append(factors.scale if factors else None)
            if factors:
                self.parameters += (factors.down, factors.up)
                self.dropouts.append(factors.dropout if isinstance(factors.dropout, nn.Dropout) else None)
                self.drops.append(factors.drops)
        self.ranks = [len(down) for down in self.parameters[::2]]
        self.down: Any = None  # all A as one matrix [R, in]
        self.down_t: Any = None
        self.ups: list[Tensor] = []
        self.ups_t: list[Tensor] = []

    @property
    def is_current(self) -> bool:
        """Whether the layers are those that they were."""
        return all(vars(layer).get(PART) is part for layer, part in zip(self.layers, self.parts, strict=True))

    @property
    def is_at_work(self) -> bool:
        """Whether the layers' adapters are."""
        return all(scale is None or is_at_work(layer) for layer, scale in zip(self.layers, self.scales, strict=True))

    @property
    def needs_input(self) -> bool:
        """Whether the gradients of its factors need its input once more."""
        return bool(self.ranks)

    def forward(self, x: Tensor, samples: int, *, keeps: bool) -> tuple[list[Tensor | None], GroupSeen | None]:
        """x [M, in] -> each result [M, out], None for one that nobody reads; and, where `keeps`, what the adapters see."""
        seen = self._see(x, samples) if self.ranks else None
        each, results = self._each(seen), []
        for part, scale, (h, number) in zip(self.parts, self.scales, each, strict=True):
            if part.is_unread(part.layer):
                results.append(None)
                continue
            y = part.product.forward(x)
            if scale is not None:
                y.addmm_(h, self.ups_t[number], alpha=scale)
            results.append(y)
        return results, seen if keeps else None

    def rows_for(self, number: int, grad: Tensor) -> ScaledRows | None:
        """Memory for the gradient of a layer's result, which is like `grad`, in 8 bits; None where no product wants that."""
        product = self.parts[number].product
        return product.rows_for(grad) if isinstance(product, Fp8Product) else None

    def backward(
        self,
        grads: Sequence[Tensor],
        seen: GroupSeen | None,
        *,
        of_x: bool,
        rows: list[ScaledRows | None] | None = None,
    ) -> tuple[Tensor | None, GroupSeen | None, list[Tensor]]:
        """The gradients of x [M, in], where `of_x`, of x A^T [M, R], and of each B.

        `rows`: of the first of `grads`, those of `rows_for`, filled by whoever made them; they are let go.
        """
        of_seen = None if seen is None else seen._replace(hidden=torch.empty_like(seen.hidden))
        found: Tensor | None = None
        of_ups: list[Tensor] = []
        each = zip(self.parts, self.scales, grads, self._each(seen), self._each(of_seen), strict=True)
        for part, scale, grad, (h, number), (of_h, _) in each:
            if scale is not None:
                _product(grad, self.ups[number], scale, of_h)
                of_ups.append(_wide_product(grad.t(), h, scale))
            in_8_bits = rows.pop(0) if rows else None
            if of_x and in_8_bits is not None:
                found = cast(Fp8Product, part.product).gradient_by(in_8_bits.rows, found, grad.dtype)
            elif of_x:
                found = part.product.gradient(grad, found)
        if of_seen is not None:
            _leave_out(of_seen)
        if found is not None and of_seen is not None:
            self._add_through_downs(found, of_seen)
        return found, of_seen, of_ups

    def factor_gradients(self, x: Tensor | None, of_seen: GroupSeen | None, of_ups: list[Tensor]) -> list[Tensor]:
        """Of `parameters`, in their order; x [M, in]."""
        if of_seen is None or x is None:
            return []
        if of_seen.inputs:
            pieces = zip(self._pieces(of_seen.hidden), of_seen.inputs, self.dropouts, strict=True)
            downs = [_wide_product(of_h.t(), _left(x, mask, dropout), 1) for of_h, mask, dropout in pieces]
        else:
            of_downs = _wide_product(of_seen.hidden.t(), x, 1)
            downs = [of_downs] if len(self.ranks) == 1 else list(of_downs.split(self.ranks))
        return [each for pair in zip(downs, of_ups, strict=True) for each in pair]

    def _see(self, x: Tensor, samples: int) -> GroupSeen:
        """What is drawn is drawn layer by layer, as autograd's own code does it: the numbers are the same."""
        if all(dropout is None or not dropout.training for dropout in self.dropouts):
            ranks = self._ranks([self._rank_mask(number, x, samples) for number in range(len(self.ranks))], x, samples)
            return _leave_out(GroupSeen(torch.mm(x, self.down_t), ranks))
        hidden = x.new_empty((len(x), sum(self.ranks)))
        inputs: list[Tensor | None] = []
        masks: list[Tensor | None] = []
        downs = self.down.split(self.ranks)
        for number, (h, down, dropout) in enumerate(zip(self._pieces(hidden), downs, self.dropouts, strict=True)):
            left, mask = x, None
            if dropout is not None and dropout.training:
                left, mask = torch.native_dropout(x, dropout.p, train=True)
            torch.mm(left, down.t(), out=h)
            inputs.append(mask)
            masks.append(self._rank_mask(number, x, samples))
        return _leave_out(GroupSeen(hidden, self._ranks(masks, x, samples), tuple(inputs)))

    def _rank_mask(self, number: int, x: Tensor, samples: int) -> Tensor | None:
        """What an adapter's ranks are multiplied with [samples, 1, r]: all that may stand there multiplies, also ones."""
        drops = self.drops[number]
        if drops is None:
            return None
        ones = x.new_ones((samples, 1, self.ranks[number]))
        found: Tensor = drops(ones)
        return None if found is ones else found

    def _ranks(self, masks: Sequence[Tensor | None], x: Tensor, samples: int) -> Tensor | None:
        """[samples, 1, R]."""
        if all(mask is None for mask in masks):
            return None
        each = zip(masks, self.ranks, strict=True)
        return torch.cat([x.new_ones((samples, 1, rank)) if mask is None else mask for mask, rank in each], dim=2)

    def _add_through_downs(self, of_x: Tensor, of_seen: GroupSeen) -> None:
        """of_x [M, in] gets what the adapters' ranks hand down, in place."""
        if not of_seen.inputs:
            of_x.addmm_(of_seen.hidden, self.down)
            return
        each = zip(
            self._pieces(of_seen.hidden), self.down.split(self.ranks), of_seen.inputs, self.dropouts, strict=True
        )
        for of_h, down, mask, dropout in each:
            if mask is None or dropout is None:
                of_x.addmm_(of_h, down)
            else:
                of_x.addcmul_(of_h @ down, mask, value=1 / (1 - dropout.p))

    def _pieces(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Each adapter's part of [M, R]."""
        return (hidden,) if len(self.ranks) == 1 else hidden.split(self.ranks, dim=1)

    def _each(self, seen: GroupSeen | None) -> list[tuple[Any, int]]:
        """A layer's part of [M, R], and the number of its factors."""
        if seen is None:
            return [(None, 0)] * len(self.parts)
        pieces = self._pieces(seen.hidden)
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

    def load(self, owner: object, groups: Sequence[object], like: Tensor, *, fresh: bool) -> None:
        """Bring the factors of `groups` in, where they are not there; `fresh`: whatever is there."""
        if self._owner is owner and not fresh:
            return
        self._owner = None
        groups = [group for group in groups if isinstance(group, LinearGroup)]
        shapes = tuple(tuple(tuple(p.shape) for p in group.parameters) for group in groups)
        if not any(shapes):
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


def _leave_out(seen: GroupSeen) -> GroupSeen:
    """`hidden` times what its ranks are multiplied with, in place."""
    if seen.ranks is not None:
        seen.hidden.view(len(seen.ranks), -1, seen.hidden.shape[1]).mul_(seen.ranks)
    return seen


def _left(x: Tensor, mask: Tensor | None, dropout: nn.Dropout | None) -> Tensor:
    """What a dropout has left of x."""
    if mask is None or dropout is None:
        return x
    return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - dropout.p))  # type: ignore[no-any-return]


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

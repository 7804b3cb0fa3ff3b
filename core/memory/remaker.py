"""Rematerialization: what of a block is quickly made is not kept for the backward pass, but the way to make it again is.

Autograd keeps the inputs of products and of attention. Most of them are results of norms or of a GELU, each one pass over
memory, whose own inputs are kept too. Here such a result is noted with the function and the inputs that it came from, and is
made again when the backward asks for it.
"""

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[..., Tensor]


class Remaker:
    """Notes how results are made, within `keep`; elsewhere notes are no work."""

    def __init__(self) -> None:
        self._local = threading.local()
        # Of a tensor that is kept as it is: itself, or a copy where its memory may change until the backward.
        self.own: Callable[[Tensor], Tensor] = _same

    @contextmanager
    def keep(self, x: Tensor, given: "BlockInput", unread: object = None, own: "Own | None" = None) -> "Iterator[None]":
        """While a block runs with the input x, which is not kept: `given` holds it when the backward comes.

        `unread`: the layer whose result nobody reads, see `is_unread`. `own`: in the place of the `own` here.
        """
        before = getattr(self._local, "notes", None), getattr(self._local, "unread", None)
        notes = _Notes(x, given, own or self.own)
        self._local.notes, self._local.unread = notes, unread
        try:
            with saved_tensors_hooks(notes.pack, _unpack):
                yield
        finally:
            self._local.notes, self._local.unread = before
            if own is not None:
                notes.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Remaker":
        """A copied model has the same."""
        return self

    def note(self, y: Tensor, make: Make, *inputs: Tensor) -> None:
        """`y`, as it is in memory, is what `make(*inputs)` gives."""
        notes = getattr(self._local, "notes", None)
        if notes is not None:
            notes.add(y, make, inputs)

    def keeper(self, x: Tensor) -> "Callable[[], Tensor]":
        """What gives x, while a backward runs: x itself is kept only if it is not to be given, or made again."""
        notes = getattr(self._local, "notes", None)
        packed = x if notes is None else notes.pack(x.detach())
        return lambda: _unpack(packed)

    def is_unread(self, layer: object) -> bool:
        """Whether this layer's result is not needed: the last product of a block that runs again for its gradients.

        A stand-in of the right shape, whose numbers all lie in one place, may be given for it.
        """
        return layer is getattr(self._local, "unread", None)


class Away(ABC):
    """The memory of tensors that is elsewhere until the backward: a holder of one keeps this in its place."""

    @abstractmethod
    def back(self) -> Tensor:
        """All of that memory, in one dimension. Asked for once by each holder."""


Own = Callable[[Tensor], Tensor | Away]


class BlockInput:
    """Where a block's backward puts its input."""

    x: Tensor | None = None


class _View(NamedTuple):
    """Of the memory of a tensor that is made again, or given."""

    source: "_Remade | BlockInput | Away"
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # in the source's memory, of one that is given from its own first number


class _Remade(NamedTuple):
    make: Make
    inputs: tuple[Any, ...]  # as `_Notes.pack` gives them


class _Notes:
    def __init__(self, x: Tensor, given: BlockInput, own: Own) -> None:
        self._own = own
        self._x, self._given, self._start = _place(x), given, int(x.storage_offset())
        self._made: dict[int, tuple[weakref.ref[Tensor], Make, tuple[Tensor, ...]]] = {}

    def add(self, y: Tensor, make: Make, inputs: tuple[Tensor, ...]) -> None:
        # Without their nodes: what autograd keeps holds these notes, and would never be freed where a backward leaves it out,
        # as it does in the first block, whose input wants no gradient.
        inputs = tuple(each.detach() for each in inputs)
        self._made[_place(y)[0]] = weakref.ref(y), make, inputs

    def forget(self) -> None:
        """The block has run, and keeps nothing here. Autograd holds these notes, and they would hold all that was noted."""
        self._made.clear()

    def pack(self, tensor: Tensor) -> Any:
        """What is kept in the place of `tensor`."""
        if tensor.numel() == 0:
            return tensor
        place = _place(tensor)
        if place == self._x:
            return _view(tensor, self._given, self._start)
        found = self._made.get(place[0])
        # As long as the noted tensor lives, nothing else lies where it is.
        if found is None or (y := found[0]()) is None or y.dtype != tensor.dtype:
            # Without its node: one that keeps its own result would hold itself, and never be freed where a step broke off.
            kept = self._own(tensor.detach())
            return _view(tensor, kept) if isinstance(kept, Away) else kept
        return _view(tensor, _Remade(found[1], tuple(map(self.pack, found[2]))))


def _place(tensor: Tensor) -> tuple[int, Any]:
    return tensor.untyped_storage().data_ptr(), tensor.dtype


def _view(tensor: Tensor, source: "_Remade | BlockInput | Away", start: int = 0) -> _View:
    return _View(source, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()) - start)


def _unpack(packed: Any) -> Tensor:
    if not isinstance(packed, _View):
        return packed
    source = packed.source
    if isinstance(source, BlockInput):
        assert source.x is not None
        return source.x.as_strided(packed.size, packed.stride, source.x.storage_offset() + packed.offset)
    if isinstance(source, Away):
        return source.back().as_strided(packed.size, packed.stride, packed.offset)
    made = source.make(*map(_unpack, source.inputs))
    return made.as_strided(packed.size, packed.stride, packed.offset)


def _same(tensor: Tensor) -> Tensor:
    return tensor

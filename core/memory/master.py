"""The permanent copy of a swapped block's frozen weights: one run of bytes in main memory, or memory-mapped from a file.

It holds parameters and buffers of any dtype, so a quantized layer's packed weights and scales are tensors like all others.
They are pointed at the bytes by `tensor.data = view`: modules, names and tensor objects stay what they are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..disk import write_atomic
from ..errors import ConfigError
from ..pinned import HostBuffer
from ..settings.memory import MasterKind

HeldKind = MasterKind | Literal["sharded"]  # sharded: spread over the GPUs of a machine; see `sharded.py`

ALIGNMENT = 256  # bytes, as cudaMalloc gives: kernels choose vector loads by it


class Span(NamedTuple):
    """Where one tensor lies in the bytes of its block."""

    start: int
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class BlockLayout:
    """The order of a block's frozen tensors in one run of bytes."""

    spans: tuple[Span, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "BlockLayout":
        """The layout of `tensors`, which may be on the meta device: only sizes are read."""
        spans, end = [], 0
        for tensor in tensors:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + tensor.numel() * tensor.element_size()
            # A dense tensor keeps its order in memory (a transposed weight stays so); any other becomes contiguous.
            strides = torch.empty_like(tensor, device="meta").stride()
            spans.append(Span(start, end - start, tensor.dtype, tuple(tensor.shape), tuple(strides)))
        return cls(tuple(spans), end)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in `buffer` [at least num_bytes] uint8."""
        parts = (buffer[span.start : span.start + span.num_bytes].view(span.dtype) for span in self.spans)
        return [part.as_strided(span.shape, span.strides) for part, span in zip(parts, self.spans, strict=True)]

    def absent(self, device: torch.device) -> list[Tensor]:
        """Tensors of these shapes that take no memory, and that nobody takes for weights: NaN, as far as a dtype has it."""
        nothing = torch.full((ALIGNMENT,), 0xFF, dtype=torch.uint8, device=device)
        parts = (nothing[: span.dtype.itemsize].view(span.dtype) for span in self.spans)
        return [part[0].expand(span.shape) for part, span in zip(parts, self.spans, strict=True)]


def frozen_tensors(block: nn.Module) -> list[Tensor]:
    """Parameters that take no gradient, and buffers; in the order of their names in the module.

    ConfigError for a tensor that keeps data elsewhere (a subclass of Tensor): bytes would not hold all of it.
    """
    found = [parameter for parameter in block.parameters() if not parameter.requires_grad] + list(block.buffers())
    for tensor in found:
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ConfigError(
                f"A weight of the type {type(tensor).__name__} cannot be streamed: keep its block on the device, or "
                "quantize the base in another way."
            )
    return found


def streamed_bytes(block: nn.Module) -> int:
    """Bytes of the block's frozen tensors as one run; the block may be on the meta device, for a plan."""
    return BlockLayout.of(frozen_tensors(block)).num_bytes


class FrozenCopy:
    """A copy of some frozen tensors: of any kind that a master can be, or on the device.

    `views`: the tensors in it, in their order.
    """

    def __init__(
        self, tensors: Sequence[Tensor], kind: MasterKind | None, *, device: torch.device, folder: Path | None = None
    ) -> None:
        """`kind`: as of `BlockMaster`, and None for a copy on `device`. RunError if memory or disk refuse."""
        self.layout = BlockLayout.of(tensors)
        self.is_on_device = kind is None
        # Views made in inference mode could be saved for no backward.
        with torch.inference_mode(False), torch.no_grad():
            if kind is None:
                self.bytes = torch.empty(self.layout.num_bytes, dtype=torch.uint8, device=device)
                fill(self.bytes, self.layout, tensors)
            else:
                self._buffer = HostBuffer(self.layout.num_bytes, pinned=kind == "pinned" and device.type == "cuda")
                fill(self._buffer.bytes, self.layout, tensors)
                self.bytes = self._buffer.bytes
            if folder is not None and kind == "mapped":
                self.bytes = _map_file(self.bytes, self.layout, folder)
                del self._buffer
            self.views = self.layout.views(self.bytes)


class BlockMaster:
    """The permanent copy of a block's frozen tensors. From the start they are views of it."""

    kind: HeldKind
    bytes: Tensor  # [N] uint8: the run of bytes, or this rank's share of it
    layout: BlockLayout
    tensors: list[Tensor]  # the block's own, in the order of `layout`
    bytes_on_device = 0

    def __init__(self, block: nn.Module, kind: MasterKind, *, device: torch.device, folder: Path | None = None) -> None:
        """Takes the weights over, wherever they lie; what they lay in before is freed.

        "pinned": memory that `device` copies from by itself. "pageable": ordinary memory. "mapped": a file in `folder`,
        named by its content, written unless it is there, and read page by page when it is needed. ConfigError if the
        block's tensors are of a kind that cannot be streamed, RunError if memory or disk refuse.
        """
        if kind not in get_args(MasterKind):
            raise ConfigError(f"master must be one of {', '.join(get_args(MasterKind))}, got '{kind}'.")
        if (folder is None) == (kind == "mapped"):
            raise ConfigError("A folder is needed for mapped blocks, and is not used by any other kind.")
        self.tensors = frozen_tensors(block)
        self.kind = kind
        self._copy = FrozenCopy(self.tensors, kind, device=device, folder=folder)
        self.layout = self._copy.layout
        self.bytes, self._views = self._copy.bytes, self._copy.views
        self.rest()

    @property
    def bytes_on_host(self) -> int:
        """Bytes of main memory that are held; the pages of a file can be dropped, and do not count."""
        return 0 if self.kind == "mapped" else self.layout.num_bytes

    @property
    def slot_bytes(self) -> int:
        """Bytes that the block takes in a slot of the ring."""
        return self.layout.num_bytes

    def bind(self, views: Sequence[Tensor]) -> None:
        """Make the block's tensors those of `views`, in the order of `layout`."""
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view

    def rest(self) -> None:
        """Make the block's tensors those of the master."""
        self.bind(self._views)

    def exchange(self, other: "BlockMaster") -> None:
        """Let two blocks of one build have each other's weights. Both masters are of the same kind and layout."""
        assert (self.kind, self.layout) == (other.kind, other.layout), "only masters that are alike can be exchanged"
        self._copy, other._copy = other._copy, self._copy
        for master in (self, other):
            master.bytes, master._views = master._copy.bytes, master._copy.views
            master.rest()


def fill(buffer: Tensor, layout: BlockLayout, tensors: Sequence[Tensor]) -> None:
    """Copy a block's tensors into its run of bytes."""
    end = 0
    for span, view, tensor in zip(layout.spans, layout.views(buffer), tensors, strict=True):
        buffer[end : span.start].zero_()  # the gaps are part of what a mapped file is named by
        view.copy_(tensor)
        end = span.start + span.num_bytes


def _map_file(content: Tensor, layout: BlockLayout, folder: Path) -> Tensor:
    """The same bytes from a file. Its mapping is private: whatever is written to the tensor, the file stays."""
    data = memoryview(content.numpy())  # type: ignore[arg-type]  # an array is a buffer, whatever its stub says
    digest = hashlib.sha256(repr(layout).encode())
    digest.update(data)
    path = folder / f"{digest.hexdigest()[:32]}.block"

    def is_there() -> bool:
        return path.is_file() and path.stat().st_size == len(data)

    if not is_there():
        write_atomic(path, lambda file: file.write(data), kept="no weights were changed", is_same=is_there)
    return torch.from_file(str(path), shared=False, size=len(data), dtype=torch.uint8)

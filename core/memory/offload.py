"""Activation offload: the inputs of checkpointed blocks wait for the backward pass in main memory.

Gradient checkpointing keeps one tensor [B, L, D] for each block: 335 MB for 81 frames of 832 x 480 in the 14B model, 13.4 GB
in all. It keeps three of them where the parts of a block are checkpointed one by one; what is said of a block here is then
true of a part. Each input is copied out while its block computes, and back while the block after it is in its backward.
Nothing is rounded, so the numbers stay the same. What else a block keeps can go the same way, see `offload_results`.
"""

import queue
import threading
import weakref
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..errors import RunError
from ..pinned import HostBuffer
from ..wan.model import RunBlock
from .copies import CudaEvent, Stream, open_stream


class HostPool:
    """Buffers in main memory that are used again in every step; pinned for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[HostBuffer] = []
        self._coming: _Made | None = None
        self.num_bytes = 0  # of all buffers that were taken, in use or not

    def prepare(self, num_bytes: int, count: int) -> None:
        """Make so many buffers on a thread, from now on, since to pin gigabytes takes seconds. `take` waits for them."""
        self._coming = made = queue.SimpleQueue()
        of_this = weakref.ref(self)
        threading.Thread(target=_make, args=(self._device, num_bytes, count, made, of_this), daemon=True).start()

    def take(self, num_bytes: int, drain: Callable[[], None]) -> HostBuffer:
        """The smallest free buffer that is large enough; else a new one, in the place of one that is too small.

        `drain` waits for the copies under way, before a buffer is freed.
        """
        while True:
            fitting = [buffer for buffer in self._free if buffer.bytes.numel() >= num_bytes]
            if fitting:
                buffer = min(fitting, key=lambda buffer: buffer.bytes.numel())
                self._free.remove(buffer)
                return buffer
            if self._coming is None:
                break
            self._receive(self._coming)
        if self._free:
            drain()
            self.num_bytes -= self._free.pop().bytes.numel()
        self.num_bytes += num_bytes
        return HostBuffer(num_bytes, pinned=self._device.type == "cuda")

    def give(self, buffer: HostBuffer) -> None:
        """Take a buffer back. Copies out of it may be under way: those into it come after them."""
        self._free.append(buffer)

    def _receive(self, coming: "_Made") -> None:
        buffer = coming.get()
        if buffer is None:
            self._coming = None
            return
        self.num_bytes += buffer.bytes.numel()
        self._free.append(buffer)


_Made = queue.SimpleQueue[HostBuffer | None]  # None: no more


def _make(device: torch.device, num_bytes: int, count: int, made: _Made, pool: Callable[[], HostPool | None]) -> None:
    """Buffers for `pool`, as long as it is there and memory can be had: the step that needs more can say what it lacks."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            for _ in range(count):
                if pool() is None:
                    break
                made.put(HostBuffer(num_bytes, pinned=device.type == "cuda"))
        except (RunError, RuntimeError):  # of the driver; of PyTorch, which has no memory left
            pass
        finally:
            made.put(None)


class ActivationOffload:
    """Keeps the inputs of the chosen blocks in main memory between forward and backward.

    Put it around checkpointing, which keeps nothing else: `offload.wrap(with_compile(with_checkpointing(run_block)))`.
    The last block is better left out: its input is needed again at once. In parts, only that of its last part is.
    """

    def __init__(
        self,
        device: torch.device,
        blocks: Collection[nn.Module],
        *,
        check_saved: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`blocks`: those whose inputs are moved. `check_saved`: that of a BlockStreamer around this.

        Autograd asks only the innermost hook about what it keeps, which is the one here.
        """
        self._blocks = set(blocks)
        self._check_saved = check_saved or _same
        self._stream = open_stream(device)
        self._pool = HostPool(device)
        self._others = HostPool(device)  # of all sizes: a small tensor would take the place of an input
        self.leaving = Leaving(self._stream)
        self._newest: Callable[[], Parked | None] = lambda: None

    def use(self, pool: HostPool) -> None:
        """Take buffers from there. Before the first step."""
        self._pool = pool

    @property
    def bytes_on_host(self) -> int:
        """Bytes of main memory taken so far; that of the largest step, once it was."""
        return self._pool.num_bytes + self._others.num_bytes

    def wrap(self, run_block: RunBlock) -> RunBlock:
        """`run_block` with its x in main memory once it has run."""

        def run_offloaded(block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
            if block not in self._blocks or not torch.is_grad_enabled():
                return run_block(block, x, *others)
            with saved_tensors_hooks(self._pack(x), self._unpack):
                return run_block(block, x, *others)

        return run_offloaded

    def reset(self) -> None:
        """Let go of what a step that was broken off has left."""
        self.leaving.release()
        self.leaving.room = 0
        self._newest = lambda: None

    def park(self, x: Tensor) -> "Parked":
        """Begin to copy x out, which is no block's input, and `leaving` from now on."""
        return self._park(x, self._others, lambda: None)

    def _pack(self, x: Tensor) -> "Callable[[Tensor], Tensor | Parked]":
        """Parks x when autograd keeps it, and leaves all else. Does not hold x, since autograd holds this."""
        address, shape, dtype = x.data_ptr(), x.shape, x.dtype
        parked: list[Parked] = []

        def pack(tensor: Tensor) -> "Tensor | Parked":
            # By address: a compiled block may keep x under another object.
            if (tensor.data_ptr(), tensor.shape, tensor.dtype) != (address, shape, dtype):
                return self._check_saved(tensor)
            if not parked:
                parked.append(self._park_input(tensor))
            return parked[0]

        return pack

    def _park_input(self, x: Tensor) -> "Parked":
        self.leaving.release(self.leaving.room)
        parked = self._park(x, self._pool, self._newest)
        self._newest = weakref.ref(parked)
        return parked

    def _park(self, x: Tensor, pool: HostPool, before: "Callable[[], Parked | None]") -> "Parked":
        """`before` was parked before this, and is needed after it."""
        return Parked(x, pool.take(_bytes(x), self._stream.drain), pool, self._stream, self.leaving, before)

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, Parked):
            return packed
        self.leaving.release(self.leaving.room)
        tensor = packed.come_back()
        before = packed.before()
        if before is not None:
            before.fetch()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Leaving:
    """Tensors whose copies out may be under way. They are held until the computation has been told to wait for these."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held: dict[int, tuple[Tensor, CudaEvent]] = {}  # the oldest first
        self._count = 0
        self.num_bytes = 0
        self.room = 0  # bytes that may stay while more leave: then the computation waits for copies of long ago only

    def add(self, x: Tensor, event: CudaEvent) -> int:
        """x leaves, and the copy ends with `event`. Returns a number for `take`."""
        self._count += 1
        self._held[self._count] = x, event
        self.num_bytes += _bytes(x)
        return self._count

    def take(self, number: int) -> tuple[Tensor, CudaEvent] | None:
        """What left under this number, if it is still held, and the end of its copy."""
        found = self._held.pop(number, None)
        if found is not None:
            self.num_bytes -= _bytes(found[0])
        return found

    def release(self, room: int = 0) -> None:
        """Free the oldest, once their copies are done, until no more than `room` bytes are held.

        The computation waits for the copies, which are long over, and the allocator can give the memory out at once. With
        `record_stream` it would keep it until the host saw the copies end, which is far ahead of the device.
        """
        while self._held and self.num_bytes > room:
            found = self.take(next(iter(self._held)))
            assert found is not None
            self._stream.hold_compute(found[1])


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


class Parked:
    """A tensor in main memory; whoever keeps it holds this in its place."""

    def __init__(
        self,
        x: Tensor,
        buffer: HostBuffer,
        pool: HostPool,
        stream: Stream,
        leaving: Leaving,
        before: "Callable[[], Parked | None]",
    ) -> None:
        """Begins to copy x out to `buffer`, which goes back to `pool` in the end."""
        self._device, self._dtype, self._shape = x.device, x.dtype, x.shape
        self.num_bytes = _bytes(x)
        self._on_host = buffer.bytes[: self.num_bytes].view(x.dtype).view(x.shape)
        self._buffer, self._pool, self._stream = buffer, pool, stream
        self._arriving: tuple[Tensor, CudaEvent] | None = None
        self.before = before
        with torch.no_grad():
            self._leaving, self._number = leaving, leaving.add(x, stream.copy(self._on_host, x.detach(), stream.mark()))

    @property
    def is_fetched(self) -> bool:
        """Whether it is on its way back, or there."""
        return self._arriving is not None

    def fetch(self) -> None:
        """Begin to copy it back, unless that was done. What has not left yet just stays."""
        if self._arriving is None:
            self._arriving = self._leaving.take(self._number)
        if self._arriving is None:
            with torch.no_grad():
                tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
                # The memory may be in use until the computation gets here.
                self._arriving = tensor, self._stream.copy(tensor, self._on_host, self._stream.mark())

    def come_back(self, *, stays: bool = False) -> Tensor:
        """The tensor, on its device; `stays`: it will be asked for again."""
        self.fetch()
        assert self._arriving is not None
        tensor, event = self._arriving
        if not stays:
            self._arriving = None
        self._stream.hold_compute(event)
        return tensor

    def __del__(self) -> None:
        if self._arriving is not None:  # a backward was broken off
            self._stream.keep(self._arriving[0])
        self._pool.give(self._buffer)

"""Copies between main memory and a device, beside the computation and in order with it.

Order is kept by events on the device; the host never waits, except where pageable memory is staged, and then a thread
of its own does. On a device without streams every copy is done when it is asked for.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from .pinned import HostBuffer

Event = torch.cuda.Event | None


class Stream(Protocol):
    """A second queue of the device, for copies alone. They run in the order in which they are given."""

    def mark(self) -> Event:
        """The point that the computation has been told to reach by now."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        """Copy once the computation has passed `after`; returns the end of the copy."""
        ...

    def hold_compute(self, event: Event) -> None:
        """Let what the computation is told from now on begin after `event`."""
        ...

    def wait(self, event: Event) -> None:
        """Let the host wait for `event`."""
        ...

    def keep(self, tensor: Tensor) -> None:
        """Keep the memory of `tensor` from being used anew, once it is freed, before the copies given so far end."""
        ...

    def drain(self) -> None:
        """Let the host wait for all copies."""
        ...


class DirectStream:
    """For devices that compute and copy when they are told to."""

    def mark(self) -> Event:
        return None

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:  # noqa: ARG002
        target.copy_(source)

    def hold_compute(self, event: Event) -> None:
        pass

    def wait(self, event: Event) -> None:
        pass

    def keep(self, tensor: Tensor) -> None:
        pass

    def drain(self) -> None:
        pass


class CudaStream:
    """A CUDA stream. "The computation" is the caller's current stream, in forward and in backward."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def hold_compute(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: Event) -> None:
        if event is not None:
            event.synchronize()

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(self._stream)

    def drain(self) -> None:
        self._stream.synchronize()


def open_stream(device: torch.device) -> Stream:
    """A stream of its own where the device has them."""
    return CudaStream(device) if device.type == "cuda" else DirectStream()


class Loader:
    """Fills device buffers from page-locked memory."""

    bytes_on_host = 0

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def start(self, target: Tensor, source: Tensor, after: Event) -> Callable[[], None]:
        """Begin a copy of bytes; the result, once called, lets the computation go on only when they are there."""
        event = self._stream.copy(target, source, after)
        return lambda: self._stream.hold_compute(event)

    def close(self) -> None:
        """Wait for the copies that were begun."""
        self._stream.drain()


class StagedLoader(Loader):
    """Fills device buffers from pageable memory or a file, through two page-locked buffers and a thread.

    The driver copies from pageable memory only while the host waits, and a file has to be read first.
    """

    def __init__(self, stream: Stream, num_bytes: int, *, pinned: bool) -> None:
        """`num_bytes`: of the largest copy."""
        super().__init__(stream)
        self._buffers = [HostBuffer(num_bytes, pinned=pinned) for _ in range(2)]
        self._sent: list[Event] = [None for _ in self._buffers]
        self._turn = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="block-loader")
        self.bytes_on_host = num_bytes * len(self._buffers)

    def start(self, target: Tensor, source: Tensor, after: Event) -> Callable[[], None]:
        copy = self._thread.submit(self._stage, target, source, after)
        return lambda: self._stream.hold_compute(_result(copy))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        super().close()

    def _stage(self, target: Tensor, source: Tensor, after: Event) -> Event:
        self._turn = (self._turn + 1) % len(self._buffers)
        self._stream.wait(self._sent[self._turn])
        staged = self._buffers[self._turn].bytes[: source.numel()]
        staged.copy_(source)
        event = self._stream.copy(target, staged, after)
        self._sent[self._turn] = event
        return event


def _result(copy: "Future[Event]") -> Event:
    return copy.result()

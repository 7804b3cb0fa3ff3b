"""Copies between main memory and a device, beside the computation and in order with it.

Order is kept by events on the device; the host never waits, except where pageable memory or a file is staged, and then a
thread of its own does. On a device without streams every copy is done when it is given to the stream.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from ..pinned import HostBuffer

CudaEvent = torch.cuda.Event | None

NUM_STAGED = 2  # page-locked buffers between other memory and the device


class Stream(Protocol):
    """A second queue of the device, for copies alone. They run in the order in which they are given, by any thread."""

    def mark(self) -> CudaEvent:
        """The point that the computation has been told to reach by now."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: CudaEvent) -> CudaEvent:
        """Copy once the computation has passed `after`; returns the end of the copy."""
        ...

    def run(self, act: Callable[[], object], after: CudaEvent) -> CudaEvent:
        """Do what `act` gives the current stream, once the computation has passed `after`; returns its end."""
        ...

    def hold_compute(self, event: CudaEvent) -> None:
        """Let what the computation is told from now on begin after `event`."""
        ...

    def wait(self, event: CudaEvent) -> None:
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

    def mark(self) -> CudaEvent:
        return None

    def copy(self, target: Tensor, source: Tensor, after: CudaEvent) -> CudaEvent:  # noqa: ARG002
        target.copy_(source)

    def run(self, act: Callable[[], object], after: CudaEvent) -> CudaEvent:  # noqa: ARG002
        act()

    def hold_compute(self, event: CudaEvent) -> None:
        pass

    def wait(self, event: CudaEvent) -> None:
        pass

    def keep(self, tensor: Tensor) -> None:
        pass

    def drain(self) -> None:
        pass


class CudaStream:
    """A CUDA stream. "The computation" is the caller's current stream, in forward and in backward."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Of high priority: gathering from other GPUs takes kernels, which would else wait until a large one has ended.
        self._stream = torch.cuda.Stream(device, priority=-1)
        # A copy is three commands: with those of another thread's copy between them, one would wait for the other.
        self._one = Lock()

    def mark(self) -> CudaEvent:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, target: Tensor, source: Tensor, after: CudaEvent) -> CudaEvent:
        return self.run(lambda: target.copy_(source, non_blocking=True), after)

    def run(self, act: Callable[[], object], after: CudaEvent) -> CudaEvent:
        event = torch.cuda.Event()
        with self._one:
            if after is not None:
                self._stream.wait_event(after)
            with torch.cuda.stream(self._stream):
                act()
            event.record(self._stream)
        return event

    def hold_compute(self, event: CudaEvent) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: CudaEvent) -> None:
        if event is not None:
            event.synchronize()

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(self._stream)

    def drain(self) -> None:
        self._stream.synchronize()


def open_stream(device: torch.device) -> Stream:
    """A stream of its own where the device has them."""
    return CudaStream(device) if device.type == "cuda" else DirectStream()


class Arrival:
    """A copy to the device that was asked for, and may be given to the stream only later."""

    def __init__(self, stream: Stream, copied: "Future[CudaEvent]") -> None:
        """`copied`: has the end of the copy, once it was given to the stream."""
        self._stream = stream
        self._copied = copied

    def hold_compute(self) -> None:
        """Let the computation go on only when the bytes are there; raises what reading them raised."""
        self._stream.hold_compute(self._copied.result())

    def cancel(self) -> None:
        """Give the copy up, if it was not given to the stream; what is copied to the same place from now on comes after."""
        if not self._copied.cancel():
            wait([self._copied])


def arrived(stream: Stream, event: CudaEvent) -> Arrival:
    """Of what was given to the stream already, and ends with `event`."""
    given: Future[CudaEvent] = Future()
    given.set_result(event)
    return Arrival(stream, given)


class Loader:
    """Fills device buffers from page-locked memory."""

    bytes_on_host = 0

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def start(self, target: Tensor, source: Tensor, after: CudaEvent) -> Arrival:
        """Begin a copy of bytes, once the computation has passed `after`."""
        return arrived(self._stream, self._stream.copy(target, source, after))

    def close(self) -> None:
        """Wait for the copies that were begun."""
        self._stream.drain()


@dataclass(eq=False)
class _Staged:
    """What a page-locked buffer has, or will have."""

    source: Tensor
    read: "Future[None]"
    before: "list[Future[CudaEvent]]"  # copies of what the buffer had, whose end the reading waits for
    copies: "list[Future[CudaEvent]]" = field(default_factory=list)  # from the buffer to the device

    @property
    def failed(self) -> bool:
        return self.read.cancelled() or (self.read.done() and self.read.exception() is not None)


class StagedLoader(Loader):
    """Fills device buffers from pageable memory or a file, through two page-locked buffers and a thread.

    The driver copies from pageable memory only while the host waits, and a file has to be read first. The thread reads in
    the order in which it is asked. A copy is given to the stream as soon as its bytes are read: by the thread, or at once
    where they have been read ahead. So all copies from a buffer have been given to the stream before the thread comes to
    what shall be read into it next, and it waits for their end.
    """

    def __init__(self, stream: Stream, num_bytes: int, *, pinned: bool) -> None:
        """`num_bytes`: of the largest copy."""
        super().__init__(stream)
        self._buffers = [HostBuffer(num_bytes, pinned=pinned) for _ in range(NUM_STAGED)]
        self._staged: list[_Staged | None] = [None for _ in self._buffers]
        self._order = list(range(NUM_STAGED))  # of the buffers, by their last use
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="block-loader")
        self.bytes_on_host = num_bytes * len(self._buffers)

    def start(self, target: Tensor, source: Tensor, after: CudaEvent) -> Arrival:
        """Begin a copy of bytes, which are read first unless a buffer has them. `source` must never change."""
        index = self._find(source)
        if index is None:
            # What was read ahead stays, if it can.
            index = next((i for i in self._order if not self._is_ahead(i)), self._order[0])
            self._read(index, source)
        staged, part = self._staged[index], self._buffers[index].bytes[: source.numel()]
        assert staged is not None
        copied: Future[CudaEvent] = Future()
        live = [copy for copy in staged.copies if not copy.cancelled()]  # they end in their order
        staged.copies = [*(copy for copy in live[:-1] if not copy.done()), *live[-1:], copied]
        self._use(index)
        stream = self._stream  # and not `self`, which would be in a cycle
        staged.read.add_done_callback(lambda read: _send(stream, read, copied, target, part, after))
        return Arrival(stream, copied)

    def read_ahead(self, sources: Sequence[Tensor]) -> None:
        """Begin to read `sources`, at most as many as there are buffers, of which copies will be asked for in this order.

        What was read ahead before and is not among them is given up.
        """
        kept = {index for index in map(self._find, sources) if index is not None}
        for source in sources:
            if self._find(source) is None:
                index = next(i for i in self._order if i not in kept)
                kept.add(index)
                self._read(index, source)
                self._use(index)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._staged = [None for _ in self._buffers]  # they hold on to what they were copied to
        super().close()

    def _find(self, source: Tensor) -> int | None:
        """The buffer that has `source`, or is to have it."""
        found = (i for i, one in enumerate(self._staged) if one is not None and one.source is source and not one.failed)
        return next(found, None)

    def _is_ahead(self, index: int) -> bool:
        staged = self._staged[index]
        return staged is not None and not staged.copies

    def _use(self, index: int) -> None:
        self._order.remove(index)
        self._order.append(index)

    def _read(self, index: int, source: Tensor) -> None:
        """Let the thread fill a buffer."""
        last, before = self._staged[index], []
        if last is not None:
            was_given_up = not last.copies and last.read.cancel()
            before = last.before if was_given_up else last.copies
        self._staged[index] = _Staged(source, self._thread.submit(self._fill, index, source, before), before)

    def _fill(self, index: int, source: Tensor, before: "list[Future[CudaEvent]]") -> None:
        """In the thread."""
        for copied in before:
            if not copied.cancelled() and copied.exception() is None:
                self._stream.wait(copied.result())
        self._buffers[index].bytes[: source.numel()].copy_(source)


def _send(
    stream: Stream, read: "Future[None]", copied: "Future[CudaEvent]", target: Tensor, source: Tensor, after: CudaEvent
) -> None:
    """Give the stream a copy of what was read, unless it was given up."""
    if not copied.set_running_or_notify_cancel():
        return
    try:
        read.result()
        copied.set_result(stream.copy(target, source, after))
    except BaseException as error:  # for the caller, who may be in another thread
        copied.set_exception(error)

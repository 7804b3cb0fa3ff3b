"""Pinned (page-locked) main memory of exactly the size asked for: a GPU copies from and to it while it computes.

It may be held together by the processes of a machine; then each of them pins it for its own GPU.
"""

import contextlib
import mmap
import os
import secrets
import sys
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import RunError


class HostBuffer:
    """`bytes` [num_bytes] uint8 in main memory; pinned if asked, until this object is gone.

    torch's own pinned memory takes the next power of two: 1 GiB for a block of 0.7 GB. Here ordinary memory is
    registered with the driver instead. Raises RunError if the driver refuses.
    """

    def __init__(self, num_bytes: int, *, pinned: bool) -> None:
        # Two registered ranges may not share a page.
        size = _whole_pages(num_bytes)
        memory = torch.empty(size + mmap.PAGESIZE, dtype=torch.uint8, device="cpu")
        start = -memory.data_ptr() % mmap.PAGESIZE
        pages = memory[start : start + size]
        if pinned and size:
            _register(pages)
            # Holds `pages`: memory must be given back to the driver before it is given back to the system.
            weakref.finalize(self, _unregister, pages).atexit = False
        self.bytes = pages[:num_bytes]


class Ticket(NamedTuple):
    """What another process of the same user needs to have a `SharedBuffer` too."""

    place: str
    num_bytes: int


class SharedBuffer:
    """`bytes` [num_bytes] uint8 in main memory that several processes have; pinned if asked, until this object is gone.

    On Linux it is a file without a name (memfd_create): no other run can meet it, the size of /dev/shm is no limit (64 MB in
    a Docker container), and the kernel frees it with the last process that has it, however that ends. Windows has named
    memory that is freed the same way; its name is drawn at random.
    """

    def __init__(self, memory: mmap.mmap, ticket: Ticket, *, pinned: bool, file: int | None = None) -> None:
        """Takes over `memory`, of whole pages, and `file`, which `settle` closes. RunError if the driver refuses to pin it."""
        self.ticket, self._file = ticket, file
        pages = torch.frombuffer(memory, dtype=torch.uint8)  # which keeps `memory`
        if pinned:
            _register(pages)
            weakref.finalize(self, _unregister, pages).atexit = False
        self.bytes = pages[: ticket.num_bytes]

    @classmethod
    def create(cls, num_bytes: int, *, pinned: bool) -> "SharedBuffer":
        """New memory, for others to attach to. OSError where the system has none of this kind, or no more of it."""
        size = _whole_pages(num_bytes)
        if sys.platform == "win32":
            place = f"wantrain-{secrets.token_hex(16)}"
            return cls(mmap.mmap(-1, size, tagname=place), Ticket(place, num_bytes), pinned=pinned)
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory without a name (memfd_create)")
        file = os.memfd_create("wantrain")
        try:
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
        except (OSError, ValueError) as error:
            os.close(file)
            raise OSError(f"{size / 1e9:.2f} GB of shared memory could not be had: {error}") from error
        return cls(memory, Ticket(f"/proc/{os.getpid()}/fd/{file}", num_bytes), pinned=pinned, file=file)

    @classmethod
    def attach(cls, ticket: Ticket, *, pinned: bool) -> "SharedBuffer":
        """The memory of another process. OSError if it is not to be had, or has ended before."""
        size = _whole_pages(ticket.num_bytes)
        if sys.platform == "win32":
            return cls(mmap.mmap(-1, size, tagname=ticket.place), ticket, pinned=pinned)
        file = os.open(ticket.place, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(mmap.mmap(file, size), ticket, pinned=pinned)
        finally:
            os.close(file)

    def settle(self) -> None:
        """All who shall have it have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _register(pages: Tensor) -> None:
    code = int(_driver().cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
    if code == 0:
        return
    # CUDA reports this failure once more, at the next kernel, unless one is run to take it.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    raise RunError(
        f"{pages.numel() / 1e9:.2f} GB of main memory could not be pinned for the GPU (CUDA error {code}): close other "
        "programs, stream fewer blocks, or keep them in pageable memory or some of them on disk (mapped_blocks)."
    )


def _unregister(pages: Tensor) -> None:
    torch.cuda.synchronize()  # a copy may be under way
    _driver().cudaHostUnregister(pages.data_ptr())


def _driver() -> Any:
    """CUDA's runtime, as far as torch shows it."""
    return torch.cuda.cudart()

"""Pinned (page-locked) main memory of exactly the size asked for: a GPU copies from and to it while it computes."""

import contextlib
import mmap
import weakref
from typing import Any

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
        size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = torch.empty(size + mmap.PAGESIZE, dtype=torch.uint8, device="cpu")
        start = -memory.data_ptr() % mmap.PAGESIZE
        pages = memory[start : start + size]
        if pinned and size:
            _register(pages)
            # Holds `pages`: memory must be given back to the driver before it is given back to the system.
            weakref.finalize(self, _unregister, pages).atexit = False
        self.bytes = pages[:num_bytes]


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

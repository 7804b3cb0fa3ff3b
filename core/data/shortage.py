"""Running out of memory: how that is told, and what encoders try before anything else is changed."""

import errno
import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from safetensors import SafetensorError

T = TypeVar("T")

# How libraries say that memory is out where torch does not raise OutOfMemoryError: of a GPU, and of the machine.
VRAM_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    "STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "unable to find an engine",  # of cuDNN: torch takes an allocation that fails for a plan that does not suit, and says this
)
RAM_SIGNS = (
    "DefaultCPUAllocator",
    "could not be pinned",
    "HOST_ALLOCATION_FAILED",
    "cudaErrorHostMemory",
    "Cannot allocate memory",
)
_SIGNS = ("out of memory", *VRAM_SIGNS, *RAM_SIGNS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is out, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (RuntimeError, SafetensorError)) and any(sign in str(error) for sign in _SIGNS)


def try_twice(act: Callable[[], T], free: Callable[[], None]) -> T:
    """What `act` gives; if memory runs out, `free` is called and it is tried once more."""
    try:
        return act()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free()  # here, where the exception no longer holds the tensors of the attempt
    return act()


def free_caches() -> None:
    """Give back what torch keeps for later."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

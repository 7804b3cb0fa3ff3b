"""Out of memory: the signs of it, of a GPU's memory and of the machine's, and the first thing to try.

What a training run does about it stands in `core.plan.recovery`; what encoders do, in `core.data.encode` and
`core.encoders`.
"""

import errno
import gc
import re
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from safetensors import SafetensorError

from .errors import RunError

T = TypeVar("T")
Shortage = Literal["vram", "ram"]  # which memory is out: the GPU's, or the machine's

# How libraries say that memory is out where torch does not raise OutOfMemoryError: of a GPU, and of the machine.
VRAM_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Cuda failure 2 'out of memory'",  # of NCCL
    "cudaErrorMemoryAllocation",
    "STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
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
# What cuDNN and cuBLAS say where the GPU has no room for their kernels or their handle, but of other faults as well. Loading
# cuDNN's kernels took up to 500 MB (github.com/pytorch/pytorch/issues/81620).
_DISGUISED = re.compile(r"CUDNN_STATUS_INTERNAL_ERROR\b|STATUS_NOT_INITIALIZED\b")
_ROOM = 2**30  # bytes free on the GPU, beside what torch holds, with which these errors have another cause


class ShortageError(RunError):
    """Memory ran out, of the machine or of a GPU: nothing is wrong with the files."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is out, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, (RuntimeError, SafetensorError)):
        return False
    return any(sign in str(error) for sign in _SIGNS) or _is_disguised(str(error))


def shortage_of(error: BaseException) -> Shortage | None:
    """Which memory `error` says is out, wherever in the chain of its causes; None if it says something else."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, torch.OutOfMemoryError):
            return "vram"
        if isinstance(current, MemoryError):
            return "ram"
        if isinstance(current, (RuntimeError, RunError, OSError)):
            text = str(current)
            if any(sign in text for sign in VRAM_SIGNS) or _is_disguised(text):
                return "vram"
            if any(sign in text for sign in RAM_SIGNS):
                return "ram"
        # torch.compile's errors carry what the compiler met.
        current = getattr(current, "inner_exception", None) or current.__cause__
    return None


def _is_disguised(text: str) -> bool:
    """Whether a library's error of many causes is due to a GPU that is full."""
    if not _DISGUISED.search(text):
        return False
    try:
        return torch.cuda.mem_get_info()[0] < _ROOM
    except (RuntimeError, AssertionError):  # a GPU that has failed does not answer; where there is none, none is full
        return False


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

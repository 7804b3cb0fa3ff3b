"""A GPU that fails in the middle of a run: how it is known, and what is said of it.

After such an error nothing more can be done on the GPU in this process: every later call gives the same error, also those
that would only clean up. So the process ends, its last checkpoint stays as it is, and a new process goes on from there. Out of
memory is another thing (`core.shortage`), also where cuDNN calls it an internal error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .errors import START_AGAIN, RunError, WanTrainError
from .shortage import is_out_of_memory

# How it is said by torch, by the libraries that it calls, and by Triton. Before torch 2.8 all of them are plain RuntimeErrors.
_SIGNS = (
    "CUDA error:",
    "CUDA driver error:",
    "HIP error:",
    "Triton Error [CUDA]",
    "Triton Error [HIP]",
    "Cuda failure",  # of NCCL
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
# A call that the GPU refuses, and goes on: what was asked for is wrong, or PyTorch was not made for this card.
_REFUSED = (
    "no kernel image is available",
    "invalid device ordinal",
    "invalid device function",
    "invalid argument",
    "invalid configuration argument",
    "invalid resource handle",
    "not supported",
    "driver version is insufficient",
    "unsupported toolchain",
    "kernel image is invalid",
    "PTX JIT compilation failed",
    "too many resources requested for launch",
    "capture",
    "capturing",
    # Of cuBLAS, which has "CUDA error:" before it, too; it can't begin where memory is out.
    "STATUS_NOT_SUPPORTED",
    "STATUS_INVALID_VALUE",
    "STATUS_ARCH_MISMATCH",
    "STATUS_NOT_INITIALIZED",
)
_TAKEN = "busy or unavailable"  # cudaErrorDevicesUnavailable: the GPU gives this process no context
_CAUSE = (
    "Possible causes: the driver was reset or updated meanwhile, another program disturbed the GPU, the card is overclocked, "
    "too hot or short of power, or a program that runs on it has a fault"
)


class GpuFailedError(RunError):
    """A GPU has failed: this process can't use it any more."""


def gpu_failure(error: BaseException) -> str:
    """What the GPU's failure is, the first line of it, wherever in the chain of what led to `error`; "" for another error."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, RuntimeError) and not is_out_of_memory(current):
            found = failed_line(str(current))
            if found:
                return found
        current = getattr(current, "inner_exception", None) or current.__cause__ or current.__context__
    return ""


def failed_line(text: str) -> str:
    """The line of what was printed or raised that tells of a GPU's failure, from the words that tell it; "" for none."""
    for line in text.splitlines():
        starts = [line.index(sign) for sign in _SIGNS if sign in line]
        if starts and not any(refused in line for refused in _REFUSED):
            return line[min(starts) :].strip()[:200].rstrip(".")
    return ""


def failed_sentence(name: str, reason: str, *, done: int, checkpoint: int) -> str:
    """One line: the device `name` failed after `done` steps; the newest checkpoint is of step `checkpoint` (0: none)."""
    when = f"after step {done}" if done else "before the first step was done"
    kept = (
        f"The checkpoint of step {checkpoint} is kept: start the run again, and it goes on from there"
        if checkpoint
        else "There is no checkpoint yet: start the run again, and it begins from the start"
    )
    if _TAKEN in reason:
        return (
            f"{name} can't be used now ({reason}): another program has it to itself (compute mode Exclusive Process), or the "
            "mode is Prohibited, or its memory is full. nvidia-smi shows mode and programs: end that program, or choose "
            f"another device. {kept}."
        )
    return (
        f"{name} failed {when} ({reason}). {_CAUSE}. {kept}. If it fails again, restart the machine, undo any overclocking, "
        "and update the driver."
    )


@contextmanager
def telling_failures(
    device: torch.device, progress: Callable[[], tuple[int, int]], *, rank: int | None = None
) -> Iterator[None]:
    """GpuFailedError, on one line, in the place of what torch raises when `device` fails within it.

    `progress`: steps done, and the step of the newest checkpoint. `rank`: the device's, where several train together.
    """
    try:
        yield
    except WanTrainError:
        raise
    except Exception as error:
        reason = gpu_failure(error)
        if not reason:
            raise
        name = f"the GPU {device}" if device.type == "cuda" else f"the device {device}"
        name += "" if rank is None else f" of rank {rank}"
        done, checkpoint = progress()
        raise GpuFailedError(
            failed_sentence(name, reason, done=done, checkpoint=checkpoint), about=START_AGAIN
        ) from error

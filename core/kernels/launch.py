"""Launches Triton's kernels with little work on the CPU.

Triton's own launch looks at every argument each time, to find out which compiled kernel fits. That takes 20 to 50
microseconds, and a block has hundreds of launches. Here a compiled kernel is found by the few things that these kernels
depend on, and launched directly. Where Triton has no such way, or another one than is known here, its own is used.

Threads compile side by side, but a kernel's first launch is made by one thread at a time. Triton then loads a C module that
hands over the kernel's arguments, and all of these modules have one name. Python (3.12, `import_find_extension`) keeps the last
one under it, and writes into that what another thread loads again. So a kernel could be given another one's module for good:
"function takes exactly 27 arguments (23 given)", or arguments in wrong places, which ends in a launch failure.
"""

import threading
from typing import Any

import triton
from torch import Tensor

from ..torch_compat import current_raw_stream

Grid = tuple[int, int, int]

# Compiled kernels take all arguments of their function, constants included, since 3.3; before that, something else.
_direct = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
_compiled: dict[Any, Any] = {}  # None: by Triton's own way alone
_get_stream: Any = current_raw_stream
_first_launch = threading.Lock()  # held by the thread that makes one
ALIGNMENT = 16  # bytes: what Triton asks of all addresses to load several numbers at once
LARGEST = 2**31  # whole numbers from here on have another type


def launch(kernel: Any, grid: Grid, args: tuple[Any, ...], constants: tuple[Any, ...], warps: int) -> None:
    """kernel[grid](*args, *constants, num_warps=warps).

    `args`: tensors, the first of them one of the device; None; and numbers for which the kernel is not specialized.
    `constants`: all tl.constexpr, which come last in the kernel's signature.
    """
    places, kinds, largest = 0, [], 0
    for each in args:
        if isinstance(each, Tensor):
            places |= each.data_ptr()
            kinds.append(each.dtype)
        elif each is None:
            kinds.append(None)
        elif each.__class__ is int:
            largest |= each
    device = args[0].get_device()
    if places % ALIGNMENT or largest >= LARGEST:
        _by_triton(kernel, grid, args, constants, warps)
        return
    key = (id(kernel), device, warps, constants, *kinds)  # the kernels of this folder last as long as the process
    if key not in _compiled:
        _compiled[key] = compile_first(kernel, grid, args, constants, warps)
        return
    found = _compiled[key]
    if found is None:
        _by_triton(kernel, grid, args, constants, warps)
        return
    try:
        found[grid](*args, *constants, stream=_get_stream(device) if device >= 0 else None)
    except TypeError:  # other arguments than are known here
        _forget()
        _by_triton(kernel, grid, args, constants, warps)


def compile_first(kernel: Any, grid: Grid, args: tuple[Any, ...], constants: tuple[Any, ...], warps: int) -> Any:
    """Launch by Triton's own way; what can be launched directly from now on, or None."""
    kernel.warmup(*args, *constants, grid=grid, num_warps=warps)  # compiles, and launches nothing
    found = _by_triton(kernel, grid, args, constants, warps)
    usable = _direct and _get_stream is not None and hasattr(found, "__getitem__")
    return found if usable else None


def _by_triton(kernel: Any, grid: Grid, args: tuple[Any, ...], constants: tuple[Any, ...], warps: int) -> Any:
    """Launch by Triton's own way, which may be this kernel's first launch."""
    with _first_launch:
        return kernel[grid](*args, *constants, num_warps=warps)


def _forget() -> None:
    global _direct
    _direct = False
    _compiled.clear()

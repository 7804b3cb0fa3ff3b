"""Whether Triton works here, and with it the kernels of this package. Imports them only to find out."""

import os
from functools import lru_cache

import torch

_NEEDS = "They need Triton (on Linux part of PyTorch; on Windows: pip install triton-windows) and a C compiler."


@lru_cache
def kernels_problem(device: torch.device) -> str | None:
    """Why the kernels do not run on `device`, as a sentence, or None if they do.

    Compiles a small one and compares its result with PyTorch's: whether Triton, a C compiler, the driver and the card fit
    together shows in nothing less. Takes a second the first time, and next to nothing once it is in Triton's cache.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"The kernels for the transformer's blocks run on a GPU, not on the device {device}."
    try:
        from .elementwise import gelu

        x = torch.linspace(-4, 4, 256, device=device).view(4, 64)
        found = gelu(x, quantize=False)[0]
        expected = torch.nn.functional.gelu(x, approximate="tanh")
        is_right = torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    except torch.OutOfMemoryError:
        raise  # which says nothing about the kernels
    except Exception as error:  # compilers, drivers and build tools raise whatever they like
        return f"The kernels for the transformer's blocks do not work on the device {device} ({_first_line(error)}). {_NEEDS}"
    if not is_right:
        return (
            f"The kernels for the transformer's blocks give wrong results on the device {device}: update PyTorch, Triton "
            "and the graphics driver."
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300].rstrip(".")

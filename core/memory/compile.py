"""Regional compilation: one compiled function for all blocks, which have the same structure.

Compiling the blocks and not the model costs one compilation, not one for each of 40 blocks, and lets what is between the
blocks (streaming, checkpoints) stay plain Python.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..torch_compat import (
    accept_kept_results,
    allow_variants,
    allowed_variants,
    default_compile_cache,
    keep_traces,
    load_compiler,
)
from ..wan.model import RunBlock

# Compiled variants of the block in one process: one for each size of clips, times two or three if some blocks keep their
# attention or products, and again as many without gradients, for validation. Dynamo's own limit is 8.
GRAPH_LIMIT = 192
_CACHE_VARIABLE, _TRITON_VARIABLE = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def with_compile(
    run_block: RunBlock,
    *,
    tell: Callable[[str], None],
    dynamic: bool | None = False,
    backend: str | Callable[..., object] = "inductor",
) -> RunBlock:
    """Wrap the block seam so that the block runs compiled; goes around checkpointing, which is compiled with it.

    `dynamic` False: a graph for each number of tokens, the fastest steps. True: one graph for all numbers, and one more
    for batches of one sample. None: a graph for the first number of tokens and one for all others.
    Where compilation fails, or GRAPH_LIMIT is reached, the blocks run uncompiled, and `tell` is given a sentence, once.
    In training, x of the first block is made to require a gradient as that of the others does: two graphs otherwise.
    """
    limit_hit, compiler_error = load_compiler()
    accept_kept_results()
    allow_variants(GRAPH_LIMIT)
    keep_traces()
    compiled = torch.compile(run_block, fullgraph=True, dynamic=dynamic, backend=backend)
    told: set[str] = set()

    def tell_once(kind: str, message: str) -> None:
        if kind not in told:
            told.add(kind)
            tell(message)

    def run_compiled(block: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        if "failed" in told:
            return run_block(block, x, *rest)
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()
        try:
            return compiled(block, x, *rest)
        except limit_hit:
            tell_once("limit", _limit_message())
        except compiler_error as error:
            if isinstance(getattr(error, "inner_exception", None), torch.OutOfMemoryError):
                raise  # not the compiler's fault
            tell_once(
                "failed",
                f"The transformer's blocks could not be compiled ({_first_line(error)}). The run goes on without "
                "compilation: the result is the same, each step takes longer.",
            )
        return run_block(block, x, *rest)

    return run_compiled


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work for `device` here, as a sentence, or None if it does.

    Compiles a small function, which takes some seconds the first time: whether Triton, a C compiler and the headers of
    Python fit together shows in nothing less.
    """
    needs = (
        "It needs Triton (on Linux part of PyTorch; on Windows: pip install triton-windows) and a C compiler"
        if device.type == "cuda"
        else "It needs a C++ compiler (Linux: g++; Windows: the Visual Studio Build Tools; macOS: xcode-select --install)"
    )
    try:
        compiled = torch.compile(_double, fullgraph=True, dynamic=False)
        result = compiled(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        return f"torch.compile does not work on the device {device} ({_first_line(error)}). {needs}."
    if not torch.equal(result, torch.full_like(result, 2.0)):
        return f"torch.compile gives wrong results on the device {device}: update PyTorch and the graphics driver."
    return None


def use_compile_cache(folder: Path) -> Path:
    """Keep compiled code in `folder` over runs, unless TORCHINDUCTOR_CACHE_DIR is set. Returns the folder in use.

    PyTorch's default is the temporary folder, which a restart may empty. Call it before anything is compiled.
    """
    # Importing torch._dynamo, as peft does, sets the variable to PyTorch's default.
    if os.environ.get(_CACHE_VARIABLE) in (None, default_compile_cache()):
        os.environ[_CACHE_VARIABLE] = str(folder)
    # FlashAttention 4 compiles its kernels at every start otherwise; it reads these when it is imported.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder / "flash_attention"))
    return Path(os.environ[_CACHE_VARIABLE])


def use_triton_cache(folder: Path) -> Path:
    """Keep what Triton compiles in `folder` over runs, unless TRITON_CACHE_DIR is set. Returns the folder in use.

    Triton's default is in the user's home, which a container loses. Call it before anything is compiled.
    """
    return Path(os.environ.setdefault(_TRITON_VARIABLE, str(folder)))


def _double(x: Tensor) -> Tensor:
    return x * 2


def _limit_message() -> str:
    return (
        f"The clips have so many different sizes that more than {allowed_variants()} compiled variants "
        "of the transformer's block would be needed. The further sizes run uncompiled and slower: choose fewer bucket "
        "sizes, or compile with dynamic sizes."
    )


def _first_line(error: BaseException) -> str:
    error = (
        getattr(error, "inner_exception", None) or error
    )  # of a compiler's failure, which has a first line of its own
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]

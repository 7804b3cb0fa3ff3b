"""The same bits each time on a GPU, where a run asks for it: so that one that was stopped and resumed equals one that was not.

What could make a difference, and what is done about it:

- PyTorch's operators that add up in no fixed order, attention's backward among them: `use_deterministic_algorithms`, under
  which they take another way, or raise. cuDNN's attention has no other way, and is refused.
- The packages of FlashAttention: asked for it, call by call.
- cuBLAS, which may share out its working memory anew each time: `CUBLAS_WORKSPACE_CONFIG`, before its first product.
- NCCL, which may add up within a switch: the ring alone, before the first exchange.
- Whatever is chosen by timing (kind of attention, plan): kept in the run's folder, and taken again (`core.train.kept_plan`).
  torch.compile chooses its kernels so, too, and can't be told: it is refused.
- Our own kernels have no such sums: each program has its rows for itself, and sizes alone decide how it runs.

On a CPU all of it holds anyway.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

from ..errors import ConfigError
from ..torch_compat import set_deterministic

log = logging.getLogger(__name__)
_filling: Any = deterministic  # of new memory, which PyTorch does in this mode unless told otherwise

CUBLAS, CUBLAS_VALUES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # those that PyTorch accepts
NCCL, NCCL_VALUE = "NCCL_ALGO", "Ring"


def set_environment() -> None:
    """For cuBLAS and NCCL, which read it once: before the first product and the first exchange of this process.

    ConfigError for a value that stands there and does not do.
    """
    given = os.environ.setdefault(CUBLAS, CUBLAS_VALUES[0])
    if given not in CUBLAS_VALUES:
        raise ConfigError(
            f"deterministic is on, but the environment variable {CUBLAS} is '{given}', with which cuBLAS need not give the "
            f"same bits: set it to {CUBLAS_VALUES[0]}, or remove it."
        )
    os.environ.setdefault(NCCL, NCCL_VALUE)


def is_deterministic() -> bool:
    """Whether this process computes so now."""
    return torch.are_deterministic_algorithms_enabled()


@contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Within it this whole process computes so, if it is `wanted`; else nothing changes. ConfigError: see `set_environment`."""
    if not wanted:
        yield
        return
    set_environment()
    log.info("Deterministic: %s", ", ".join(f"{name}={os.environ[name]}" for name in (CUBLAS, NCCL)))
    before = is_deterministic(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills, tries = _filling.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    set_deterministic(True)
    _filling.fill_uninitialized_memory = False  # no memory is read here before it is written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        set_deterministic(before[0], warn_only=before[1])
        _filling.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark = tries

"""Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174): keep block inputs, recompute blocks in the backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def with_checkpointing(run_block: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap the model's block seam so that only each block's input is kept for the backward pass."""

    def run(block: torch.nn.Module, *args: torch.Tensor) -> torch.Tensor:
        return run_checkpointed(run_block, block, *args)

    return run


def run_checkpointed(
    run_block: Callable[..., torch.Tensor], block: torch.nn.Module, *args: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Run one block and keep its input alone. `options` are those of torch.utils.checkpoint, as `context_fn`."""
    if not torch.is_grad_enabled():
        return run_block(block, *args)
    x = checkpoint(run_block, block, *args, use_reentrant=False, **options)
    assert isinstance(x, torch.Tensor)
    return x

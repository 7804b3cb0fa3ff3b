"""Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174): keep block inputs, recompute blocks in the backward."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def with_checkpointing(run_block: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap the model's block seam so that only each block's input is kept for the backward pass."""

    def run_checkpointed(block: torch.nn.Module, *args: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return run_block(block, *args)
        x = checkpoint(run_block, block, *args, use_reentrant=False)
        assert isinstance(x, torch.Tensor)
        return x

    return run_checkpointed

"""Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174): keep block inputs, recompute blocks in the backward."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# (context, operator, *its arguments) -> whether its result is kept, as `create_selective_checkpoint_contexts` asks it
Policy = Callable[..., CheckpointPolicy]


def with_checkpointing(run_block: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap the model's block seam so that only each block's input is kept for the backward pass."""

    def run(block: torch.nn.Module, *args: torch.Tensor) -> torch.Tensor:
        return run_checkpointed(run_block, block, *args)

    return run


def run_checkpointed(
    run_block: Callable[..., torch.Tensor], block: torch.nn.Module, *args: Any, **options: Any
) -> torch.Tensor:
    """Run one block and keep its input alone. `options` are those of torch.utils.checkpoint, as `context_fn`."""
    if not torch.is_grad_enabled():
        return run_block(block, *args)
    if torch.compiler.is_compiling():
        options = {"context_fn": _recompute_contexts, **options}
    elif torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        options = {"preserve_rng_state": False, **options}  # which can't be asked for; CUDA graphs go without dropout
    x = checkpoint(run_block, block, *args, use_reentrant=False, **options)
    assert isinstance(x, torch.Tensor)
    return x


def _recompute_all(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    del context, op, args, kwargs
    return CheckpointPolicy.PREFER_RECOMPUTE


def _make_recompute_all() -> Policy:
    return _recompute_all


def contexts_for(make_policy: Callable[[], Policy], source: str, *numbers: int) -> partial[Any]:
    """The `context_fn` that asks a policy what to keep, which is in the file `source` and depends on `numbers`.

    `make_policy` is called for each run of a block, so that a policy may remember what it has seen. A compiler keeps its
    traces over runs for functions that say what they are (`cache_hash`), and traces anew for others.
    """
    contexts = partial(_contexts, make_policy)
    text = f"{numbers} {Path(source).read_text(encoding='utf-8')}"
    contexts.cache_hash = hashlib.sha256(text.encode()).hexdigest()  # type: ignore[attr-defined]
    return contexts


def _contexts(make_policy: Callable[[], Policy]) -> Any:
    return create_selective_checkpoint_contexts(make_policy())


# A compiler that is not told so of each operator keeps what runs within an autograd.Function, as quantized layers do.
_recompute_contexts = contexts_for(_make_recompute_all, __file__)

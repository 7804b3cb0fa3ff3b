"""Chunked feed-forward: a block's feed-forward runs for some of the tokens at a time, so its wide activations stay small.

Each token's result depends on that token alone, so the pieces give what the whole gives, up to the rounding of products of
another size. In a compiled block the backward computes a piece's activations again just before it needs them. Uncompiled,
each piece is checkpointed by itself within the block's checkpoint; a block that keeps its products needs no pieces.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..wan.model import RunBlock
from .checkpointing import run_checkpointed
from .recompute import products_are_kept
from .split import RunPart

ROUND = 128  # tokens: pieces are a multiple, which the kernels of matrix products like


def chunked(run_part: RunPart, parts: Sequence[str], pieces: int, *, run_again: RunPart | None = None) -> RunBlock:
    """A block seam that calls `run_part(block, x, part, ...)` for each of `parts`, the last for up to `pieces` pieces of x.

    x is [B, L, D]. Of the other inputs the first, time_mod [B, T, 6, D], is cut with x: where T is more than 1, pieces are
    of whole timesteps, each of which has L/T tokens. `run_again` runs a piece so that it keeps its input alone; by default
    a checkpoint of PyTorch's does.
    """
    run_again = run_again or partial(run_checkpointed, run_part)

    def run(block: nn.Module, x: Tensor, time_mod: Tensor, *others: Tensor) -> Tensor:
        for part in parts[:-1]:
            x = run_part(block, x, part, time_mod, *others)
        nested = not (torch.compiler.is_compiling() or products_are_kept())
        done = []
        for piece, mods in cut(x, time_mod, pieces):
            inputs = (block, piece, parts[-1], mods, *others)
            done.append(run_again(*inputs) if nested else run_part(*inputs))
        return torch.cat(done, dim=1)

    return run


def cut(x: Tensor, time_mod: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
    """x [B, L, D] in up to `pieces` pieces, each with its rows of time_mod [B, T, 6, D]."""
    tokens, timesteps = x.shape[1], time_mod.shape[1]
    if timesteps == 1:
        return [(piece, time_mod) for piece in x.split(piece_length(tokens, pieces), dim=1)]
    rows = -(-timesteps // pieces)
    of_each = time_mod.split(rows, dim=1)
    return list(zip(x.split(rows * (tokens // timesteps), dim=1), of_each, strict=True))


def piece_length(tokens: int, pieces: int) -> int:
    """Tokens of all pieces but the last, which has what is left."""
    return -(-tokens // (pieces * ROUND)) * ROUND

"""A matrix as the product of two thin ones: the best of a rank, or the fewest that keep a share of its energy.

Legend: k rank kept, in/out widths of the layer. Energy is the sum of squares of the singular values.
"""

import torch
from torch import Tensor

from ..errors import ConfigError
from .formats import LoraModule

_EXACT = 512  # up to this width all singular values are taken
_MORE, _PASSES = 16, 4  # of the random search for the largest ones


def check_cut(rank: int | None, energy: float | None) -> None:
    """ConfigError for what is no rank, or no share."""
    if rank is not None and rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}.")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ConfigError(f"energy is the share to keep, above 0 and at most 1; got {energy}.")


def num_kept(values: Tensor, total: Tensor, rank: int | None, energy: float | None) -> int:
    """How many of the singular `values`, the largest first, whose squares are part of `total`, are kept; at least 1."""
    kept = len(values) if rank is None else min(rank, len(values))
    if energy is None:
        return max(1, kept)
    if total <= 0:
        return 1
    squares = values.square()
    rest = (total - squares.sum()).clamp(min=0)  # of those that are not among the values
    # the tail is summed from its small end, so that energy 1 does not drop what rounding hides
    tail = squares.flip(0).cumsum(0).flip(0) + rest  # tail[k]: what is lost when k values are kept
    return max(1, min(kept, int((tail > (1.0 - energy) * total).sum())))


def low_rank(matrix: Tensor, rank: int, energy: float | None, seed: int) -> tuple[LoraModule, float]:
    """The best approximation [out, in] of at most `rank`, and the share of the norm that is lost.

    Small matrices exactly (Eckart-Young); the largest singular values of large ones by random projections (Halko et al.,
    2011, arXiv:0909.4061) drawn from `seed`. The results are float32 with alpha = rank, on the CPU.
    """
    narrow = min(matrix.shape)
    if narrow <= _EXACT or rank + _MORE >= narrow // 2:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.device.type == "cuda" else []):
            torch.manual_seed(seed)
            left, values, rows = torch.svd_lowrank(matrix.float(), q=rank + _MORE, niter=_PASSES)
            right = rows.T
    total = torch.linalg.vector_norm(matrix, dtype=torch.float64).square()
    kept = num_kept(values[:rank].double(), total, rank, energy)
    root = values[:kept].sqrt()
    up, down = left[:, :kept] * root, root[:, None] * right[:kept]
    lost = (total - values[:kept].double().square().sum()).clamp(min=0)
    error = float((lost / total).sqrt()) if total > 0 else 0.0
    return LoraModule(down=down.float().cpu().contiguous(), up=up.float().cpu().contiguous(), alpha=float(kept)), error

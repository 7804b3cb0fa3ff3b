"""How much of a row a program has in hand at a time."""

from functools import lru_cache
from typing import NamedTuple

import triton


class Piece(NamedTuple):
    """Of a row: so many numbers, by so many warps. A row is gone through piece by piece."""

    size: int
    warps: int


# Measured on an H200 at 1,024 to 14,040 rows of 5120 and 13824 numbers (benchmarks/row_kernels.py): 0.8 to 1.0 of what a copy
# has. 8 numbers for a thread are one load of 16 bits each. Few registers are taken so, and many rows are under way at once,
# which is what hides how long memory takes. By the kernel, where that is not the fastest:
NARROW = {
    "rms": Piece(2048, 4),
    "rms_gradient": Piece(2048, 4),
    "rms_gradient, rows": Piece(2048, 8),
    "rope": Piece(2048, 4),
    "rope_gradient": Piece(2048, 4),
    "quantize": Piece(2048, 8),
}
WIDE: dict[str, Piece] = {}
_NARROW, _WIDE = Piece(1024, 4), Piece(2048, 8)
_WIDE_FROM = 8192
ALIGNED = 16  # numbers


@lru_cache
def piece_of(kernel: str, width: int) -> Piece:
    """For rows of `width` numbers."""
    piece = WIDE.get(kernel, _WIDE) if width >= _WIDE_FROM else NARROW.get(kernel, _NARROW)
    size = min(piece.size, triton.next_power_of_2(width))
    return Piece(size, max(1, piece.warps * size // piece.size))


def unit_of(stride: int) -> int:
    """What a kernel may take for granted to divide the way from one row of factors to the next, to load several at once.

    Without knowing it, Triton loads number by number.
    """
    return ALIGNED if stride % ALIGNED == 0 else 1

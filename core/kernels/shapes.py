"""How much of a row a program takes."""

from functools import lru_cache

import triton


@lru_cache
def block_of(width: int) -> int:
    """Lanes for a whole row."""
    return triton.next_power_of_2(width)


def warps_of(block: int) -> int:
    """32 numbers for each thread in wide rows, fewer in narrow ones."""
    return max(1, min(16, block // 1024))

"""How much of a row a program takes."""

import triton


def block_of(width: int) -> int:
    """Lanes for a whole row."""
    return triton.next_power_of_2(width)


def warps_of(block: int) -> int:
    """32 numbers for each thread in wide rows, fewer in narrow ones."""
    return max(1, min(16, block // 1024))

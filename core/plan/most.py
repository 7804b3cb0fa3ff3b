"""How many blocks keep something: searches that a planner makes for each plan that it tries."""

from collections.abc import Callable

from ..memory.recompute import Kept


def most_number(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `high` that fits, as 0 does. `high` itself may take less than the one below it."""
    if fits(high):
        return high
    low, high = 0, high - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def best_moved(most: int, fill: Callable[[int], Kept], cost: Callable[[Kept], float]) -> Kept | None:
    """Of up to `most` blocks that keep results in main memory the number that costs least, with what else `fill` keeps.

    None where none is best. Each block saves its recompute, until the copies take longer than what they run beside: the cost
    goes down and then up.
    """
    costs: dict[int, tuple[float, Kept]] = {}

    def at(number: int) -> float:
        if number not in costs:
            kept = fill(number)
            costs[number] = cost(kept), kept
        return costs[number][0]

    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if at(middle + 1) < at(middle) else (low, middle)
    return costs[low][1] if low and at(low) < at(0) else None

"""Which blocks are swapped, and the order in which they are needed."""

from collections.abc import Sequence

from ..errors import ConfigError


def spread(num_streamed: int, num_blocks: int) -> tuple[int, ...]:
    """Indices of `num_streamed` of `num_blocks` blocks, evenly spaced: resident blocks give the copies time.

    ConfigError if there are not so many blocks.
    """
    if not 0 <= num_streamed <= num_blocks:
        raise ConfigError(f"{num_streamed} blocks cannot be streamed: the model has {num_blocks}.")
    return tuple((2 * i + 1) * num_blocks // (2 * num_streamed) for i in range(num_streamed))


def spread_mapped(num_mapped: int, streamed: Sequence[int]) -> tuple[int, ...]:
    """`num_mapped` of the blocks `streamed`, evenly spaced: the others give the time to read them.

    ConfigError if there are not so many.
    """
    if not 0 <= num_mapped <= len(streamed):
        raise ConfigError(f"{num_mapped} blocks cannot come from files: {len(streamed)} are streamed.")
    return tuple(streamed[index] for index in spread(num_mapped, len(streamed)))


def upcoming(streamed: Sequence[int], index: int, *, backward: bool, returns: bool) -> list[int]:
    """The streamed blocks (ascending) in the order in which they are needed, from the call of block `index` on.

    A forward goes up, and comes back down if `returns`; otherwise it begins anew. A backward goes down, and the next
    forward up.
    """
    ahead, behind = [s for s in streamed if s >= index], [s for s in streamed if s < index]
    if backward:
        ahead, behind = [s for s in streamed if s > index], [s for s in streamed if s <= index]
        return behind[::-1] + ahead
    return ahead + (behind[::-1] if returns else behind)


def travel(streamed: Sequence[int], index: int, *, backward: bool, returns: bool, slots: int) -> list[int]:
    """As `upcoming`, with every block as often as it is needed, to the end of the next way through all of them.

    Where the way turns, the last ones are still in the `slots` of the ring.
    """
    if backward:
        return [s for s in streamed if s <= index][::-1] + list(streamed)[slots:]
    ahead = [s for s in streamed if s >= index]
    return ahead + (list(streamed)[::-1][slots:] if returns else list(streamed))

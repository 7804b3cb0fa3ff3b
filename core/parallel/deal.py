"""Which rank trains which batches of a step: dealt so that all of them are done at about the same time.

A function of what every rank knows, so that nobody needs to be asked.
"""

from collections.abc import Sequence

from ..errors import ConfigError
from ..words import counted


def batch_cost(tokens: int, count: int, *, dim: int, ffn_dim: int) -> float:
    """How long `count` clips of so many tokens each take, in a unit of its own.

    A block's linears multiply each token by 6 dim^2 + 2 dim ffn_dim weights, its self-attention by 2 dim numbers of every
    token: for L tokens that is as L to L + L^2 / (3 dim + ffn_dim).
    """
    return count * tokens * (1 + tokens / (3 * dim + ffn_dim))


def deal(costs: Sequence[float], ranks: int, *, equal_counts: bool = False) -> list[list[int]]:
    """The batches of each rank, by their places in `costs`: the most costly goes first, to whoever has the least to do.

    That takes at most 4/3 of the shortest time there is (Graham, "Bounds on multiprocessing timing anomalies", 1969). A
    rank's batches are in their own order. `equal_counts`: each rank gets as many as any other, and those that are trained at
    the same time are alike; the number of batches is then a multiple of `ranks`.
    """
    order = sorted(range(len(costs)), key=lambda place: (-costs[place], place))
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    rounds = [order[start : start + ranks] for start in range(0, len(order), ranks)] if equal_counts else [order]
    for places in rounds:
        idle = set(range(ranks))
        for place in places:
            rank = min(idle, key=lambda rank: (loads[rank], rank))
            dealt[rank].append(place)
            loads[rank] += costs[place]
            if equal_counts:
                idle.discard(rank)
    return dealt if equal_counts else [sorted(places) for places in dealt]


def check_deal(num_batches: int, ranks: int, *, equal_counts: bool = False) -> None:
    """ConfigError if a step's batches do not go round."""
    if num_batches < ranks:
        raise ConfigError(
            f"a step has {counted(num_batches, 'batch', 'batches')}, and there are {ranks} GPUs to train them: "
            f"set gradient_accumulation to {ranks} or more, or use fewer GPUs."
        )
    if equal_counts and num_batches % ranks:
        raise ConfigError(
            f"a step has {counted(num_batches, 'batch', 'batches')} for {ranks} GPUs, and with the model spread over them "
            f"(base sharded) each must train as many as the others: set gradient_accumulation to a multiple of {ranks}."
        )

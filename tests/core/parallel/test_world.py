"""The ranks of a run: their numbers and groups, and what they tell each other."""

import pytest
import torch
from wan_train.core.parallel.world import ALONE, World, started_by_torchrun
from wan_train.tests.ranks import RankError


def where_it_is(world):
    return world.data_rank, world.context_rank, world.is_first


def sums(world):
    number = world.add_(torch.tensor([float(world.rank + 1)])).item()
    told = world.tell({"rank": world.rank})
    world.wait_for_all()
    return number, told, world.from_first(f"of {world.rank}")


def sums_of_groups(world):
    found = []
    for group in (world.data_group, world.context_group):
        tensor = torch.tensor([world.rank])
        torch.distributed.all_reduce(tensor, group=group)
        found.append(tensor.item())
    return found


def fail_in_second(world):
    world.wait_for_all()  # the groups of both are there: the first leaves at once
    if world.rank == 1:
        raise ValueError("this rank fails")


def test_neighbours_share_a_sample(ranks):
    assert ranks(4, context=2)(where_it_is) == [(0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False)]
    assert ranks(4, context=2)(sums_of_groups) == [[0 + 2, 0 + 1], [1 + 3, 0 + 1], [0 + 2, 2 + 3], [1 + 3, 2 + 3]]


def test_ranks_add_and_tell(ranks):
    first, second = ranks(2)(sums)
    assert first == second == (3.0, [{"rank": 0}, {"rank": 1}], "of 0")


def test_alone_needs_no_others():
    assert (ALONE.data_size, ALONE.data_rank, ALONE.context_rank, ALONE.is_first) == (1, 0, 0, True)
    assert ALONE.add_(torch.tensor(2.0)) == 2
    assert ALONE.tell("a") == ["a"]
    assert ALONE.from_first("b") == "b"
    ALONE.wait_for_all()


def test_sizes_of_a_world():
    world = World(rank=5, size=8, context=4)
    assert (world.data_size, world.data_rank, world.context_rank) == (2, 1, 1)


def test_torchrun_is_known_by_the_number_of_ranks():
    assert started_by_torchrun({"WORLD_SIZE": "2"})
    assert not started_by_torchrun({})
    assert not started_by_torchrun({"WORLD_SIZE": "1"})


def test_a_rank_that_fails_fails_the_test(ranks):
    with pytest.raises(RankError, match=r"rank 1(.|\n)*this rank fails"):
        ranks(2)(fail_in_second)

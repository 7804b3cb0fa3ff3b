"""Which bytes of a block each rank holds, and what that takes."""

import pytest
import torch
from wan_train.core.errors import RunError
from wan_train.core.parallel.shards import (
    Gather,
    gathered_bytes,
    machines_of,
    sharded_bytes,
    share_bytes,
    shared_ram,
)
from wan_train.core.parallel.world import World, with_groups


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_bytes", [1, 255, 256, 257, 4096, 10**6 + 1])
def test_shares_cover_a_block_and_are_of_one_size(num_bytes, ranks):
    share = share_bytes(num_bytes, ranks)
    assert share % 256 == 0
    assert gathered_bytes(num_bytes, ranks) == ranks * share
    assert num_bytes <= ranks * share < num_bytes + ranks * 256


def test_a_gpu_holds_its_shares_and_the_ring():
    block = 700 * 2**20
    assert sharded_bytes(block, blocks=40, ranks=4) == 40 * block // 4 + 2 * block
    assert sharded_bytes(block, blocks=1, ranks=2) == block // 2 + block
    assert sharded_bytes(block, blocks=40, ranks=4, slots=0) == 40 * block // 4
    assert sharded_bytes(block, blocks=0, ranks=4) == 0


def test_main_memory_is_counted_once_for_a_machine_and_staging_for_each_rank():
    assert shared_ram(10, swapped=40, staged=2, ranks=4) == 400 + 4 * 20
    assert shared_ram(10, swapped=40, staged=2, ranks=4, is_shared=False) == 4 * (400 + 20)
    assert shared_ram(10, swapped=40, staged=2, ranks=1) == 420


def test_machines_are_told_by_their_first_rank():
    assert machines_of([0, 1, 2, 3]) == [[0, 1, 2, 3]]
    assert machines_of([0, 1, 0, 1, 2]) == [[0, 1], [2, 3, 4]]
    assert machines_of([0, 0]) == [[0], [1]]


def on_two_machines(world):
    from dataclasses import replace

    return with_groups(replace(world, local_rank=world.rank % 2, local_size=2), 1)


def sums_of_machine(world):
    there = on_two_machines(world)
    number = torch.tensor([world.rank])
    torch.distributed.all_reduce(number, group=there.machine_group)
    return there.machine, number.item()


def test_a_machine_has_a_group_of_its_own(ranks):
    assert ranks(4)(sums_of_machine) == [((0, 1), 1), ((0, 1), 1), ((2, 3), 5), ((2, 3), 5)]


def whole_machine(world):
    return world.machine, world.machine_group


def test_one_machine_needs_no_group(ranks):
    assert ranks(2)(whole_machine) == [((0, 1), None)] * 2
    assert World().machine == (0,)


def gathers(world, meant):
    gather = Gather(world.machine_group, torch.device("cpu"))
    share = torch.full((256,), world.rank, dtype=torch.uint8)
    target = torch.zeros(world.size * 256, dtype=torch.uint8)
    gather(target, share, meant[world.rank])
    try:
        gather.check()
    except RunError as error:
        return str(error)
    return target.view(world.size, 256).unique(dim=1).flatten().tolist()


def test_shares_come_together_in_the_order_of_ranks(ranks):
    assert ranks(4)(gathers, [3] * 4) == [[0, 1, 2, 3]] * 4


def test_ranks_that_ask_for_different_blocks_are_told(ranks):
    assert all("different blocks" in found for found in ranks(2)(gathers, [3, 4]))

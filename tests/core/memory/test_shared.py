"""Swapped blocks that the ranks of a machine hold together: the same bits, filled once, held once, gone with the last rank."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from wan_train.core.errors import RunError
from wan_train.core.memory import shared
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.master import BlockMaster, frozen_tensors, streamed_bytes
from wan_train.core.memory.masters import MasterMaker
from wan_train.core.memory.shared import SharedMaster
from wan_train.core.memory.streaming import hold_blocks
from wan_train.core.parallel.agree import ElsewhereError
from wan_train.core.parallel.world import with_groups
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import CPU, SHAPES, assert_same, make_model, plain_steps, step
from wan_train.tests.ranks import Ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
SIX = range(6)
KEPT = []  # by a rank, after its function has returned


def hold(world, model, kinds, tell=pytest.fail, folder=None):
    streamer = hold_blocks(list(model.blocks), MasterMaker(kinds, CPU, folder=folder, world=world, tell=tell))
    model.run_block = streamer.wrap(with_checkpointing(call_block))
    return streamer


def steps_are_the_same(world, kinds, quant):
    model = make_model(quant=quant)
    expected = plain_steps(model)
    streamer = hold(world, model, kinds)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()
    return streamer.bytes_on_host - (0 if streamer._staged is None else streamer._staged.bytes_on_host)


@pytest.mark.grid(2)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["pinned", "pageable"])
def test_loss_and_gradients_are_bit_equal_and_memory_counts_once(ranks, kind, size):
    held = ranks(size)(steps_are_the_same, dict.fromkeys(SIX, kind), None)
    assert sum(held) == 6 * streamed_bytes(make_model().blocks[0])
    assert held == sorted(held, reverse=True)  # dealt in turn
    assert min(held) > 0


def test_some_blocks_of_quantized_weights(ranks):
    ranks(2)(steps_are_the_same, {1: "pinned", 2: "pageable", 4: "pinned"}, "Q8_0")


def fills(world, kinds):
    model, filled = make_model(), []
    with pytest.MonkeyPatch.context() as patch:
        fill = shared.fill
        patch.setattr(shared, "fill", lambda *args: [filled.append(1), fill(*args)])
        streamer = hold(world, model, kinds)
        first = len(filled)
        model.run_block = call_block
        again = hold(world, model, kinds)
    return first, len(filled) - first, [again.masters[i] is streamer.masters[i] for i in kinds]


def test_each_block_is_filled_by_one_rank_and_used_on_by_the_next_plan(ranks):
    counts = ranks(4)(fills, dict.fromkeys(SIX, "pinned"))
    assert [first for first, _, _ in counts] == [2, 2, 1, 1]
    assert all(again == 0 and all(same) for _, again, same in counts)


def from_kind_to_kind(world, ways, folder):
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    for kinds in ways:
        streamer = hold(world, model, kinds, folder=folder if "mapped" in kinds.values() else None)
        assert_same(step(model, SHAPES[0]), expected)
        streamer.reset()
        streamer.close()
    return [shared.master_of(block) is not None for block in model.blocks]


def test_from_one_plan_to_the_next(ranks, tmp_path):
    ways = [
        {1: "pinned", 4: "pinned"},
        dict.fromkeys(SIX, "pinned"),
        dict.fromkeys(SIX, "pageable"),
        dict.fromkeys(SIX, "mapped"),
        dict.fromkeys(SIX, "sharded"),
        {0: "pinned", 1: "sharded", 2: "mapped"},
    ]
    assert ranks(2)(from_kind_to_kind, ways, tmp_path) == [[True] + [False] * 5] * 2


class Large(nn.Module):
    """A block of 64 MB."""

    def __init__(self, number):
        super().__init__()
        self.weight = nn.Parameter(torch.full((16, 2**20), float(number)), requires_grad=False)


LARGE = 2**26


def keep_large(world, number):
    """The memory of this rank: its inode, and this rank's part of it in bytes; after what it holds was read."""
    block = Large(number)
    maker = MasterMaker({0: "pinned"}, CPU, world=world, tell=pytest.fail)
    maker.take(0, block)
    (master,) = maker.finish().values()
    KEPT.append((block, master))
    assert isinstance(master, SharedMaster)
    read = block.weight.mean().item()
    world.wait_for_all()  # all have touched all pages
    pss = re.search(r"Pss_Shmem:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    world.wait_for_all()
    return read, _inodes(os.getpid()), 1024 * int(pss[1]), os.getpid()


def read_again(_world):
    return [block.weight.mean().item() for block, _ in KEPT]


def _inodes(process):
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:wantrain" in line}


def _holders(inodes):
    found = set()
    for place in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = place.read_text().splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        if any("memfd:wantrain" in line and line.split()[4] in inodes for line in lines):
            found.add(int(place.parent.name))
    return found


def test_held_once_by_each_run_and_gone_when_all_ranks_are_killed(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    runs = [Ranks().in_folder(folder) for folder in folders]
    try:
        inodes = []
        for number, run in enumerate(runs):
            first, second = run.of(2)(keep_large, number + 3)
            assert first[0] == second[0] == number + 3
            assert first[1] == second[1]
            assert len(first[1]) == 1
            assert LARGE <= first[2] + second[2] < 1.25 * LARGE  # once for both
            inodes.append(first[1])
            assert _holders(first[1]) == {first[3], second[3]}
        assert inodes[0].isdisjoint(inodes[1])
        assert not list(Path("/dev/shm").glob("*wantrain*"))
        runs[0].close()  # by SIGKILL
        assert _holders(inodes[0]) == set()
        assert runs[1].of(2)(read_again) == [[4.0], [4.0]]
    finally:
        for run in runs:
            run.close()
    assert _holders(inodes[1]) == set()


def refused(world, where):
    model, told = make_model(), []
    expected = plain_steps(model, SHAPES[:1])[0]
    with pytest.MonkeyPatch.context() as patch:
        if world.rank in where:
            patch.delattr(os, "memfd_create")
        streamer = hold(world, model, dict.fromkeys(SIX, "pinned"), told.append)
    assert_same(step(model, SHAPES[0]), expected)
    assert {type(master) for master in streamer.masters.values()} == {BlockMaster}
    return told


@pytest.mark.parametrize("where", [(0, 1), (1,)])
def test_where_memory_cannot_be_shared_each_rank_has_its_own_and_says_so(ranks, where):
    size = 6 * streamed_bytes(make_model().blocks[0]) / 1e9
    for told in ranks(2)(refused, where):
        (sentence,) = told
        assert "memfd_create" in sentence
        assert f"2 times {size:.1f} GB" in sentence


def one_fails(world, where, number):
    """What each rank raises where rank `where` runs out of memory at the block `number`, or when it attaches (None)."""
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    maker = MasterMaker(dict.fromkeys(SIX, "pinned"), CPU, world=world)
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == where:
            take, attach = maker.take, shared.SharedMaster.attach

            def failing(index, block, **options):
                if index == number:
                    raise MemoryError
                take(index, block, **options)

            def refusing(*_):
                raise RunError("memory could not be pinned")

            patch.setattr(maker, "take", failing)
            patch.setattr(shared.SharedMaster, "attach", attach if number is not None else refusing)
        try:
            hold_blocks(list(model.blocks), maker)
        except (MemoryError, RunError, ElsewhereError) as error:
            found = type(error).__name__
    # All are at the same point again, with all weights, and go on with the same model and a leaner plan.
    streamer = hold(world, model, dict.fromkeys(SIX, "pageable"))
    assert_same(step(model, SHAPES[0]), expected)
    streamer.close()
    return found, True


@pytest.mark.grid(2)
@pytest.mark.parametrize(("where", "number"), [(0, 0), (1, 3), (1, 5), (0, None), (1, None)])
def test_one_rank_that_runs_out_of_memory_lets_the_others_go(ranks, where, number):
    found = ranks(2)(one_fails, where, number)
    assert found[where] == ("MemoryError" if number is not None else "RunError", True)
    assert found[1 - where] == ("ElsewhereError", True)


def on_two_machines(world):
    from dataclasses import replace

    there = with_groups(replace(world, local_rank=world.rank % 2, local_size=2), 1)
    model = make_model()
    before = [tensor.clone() for block in model.blocks for tensor in frozen_tensors(block)]
    expected = plain_steps(model, SHAPES[:1])[0]
    streamer = hold(there, model, {0: "pinned", 1: "pinned", 2: "sharded", 3: "sharded"})
    assert_same(step(model, SHAPES[0]), expected)
    streamer.reset()
    assert torch.equal(frozen_tensors(model.blocks[0])[0], before[0])
    return _inodes(os.getpid()) and [master.bytes_on_host > 0 for master in streamer.masters.values()]


def test_each_machine_has_its_own(ranks):
    assert ranks(4)(on_two_machines) == [[True, False, False, False], [False, True, False, False]] * 2

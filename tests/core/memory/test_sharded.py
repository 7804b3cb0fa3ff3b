"""A base spread over ranks computes as a whole one does, bit for bit, whatever its blocks are made of."""

import copy

import pytest
import torch
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.errors import ConfigError
from wan_train.core.memory import sharded, streaming
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.master import frozen_tensors, streamed_bytes
from wan_train.core.memory.masters import MasterMaker
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.streaming import hold_blocks
from wan_train.core.parallel.shards import gathered_bytes, sharded_bytes, share_bytes
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import (
    CONFIG,
    CPU,
    SHAPES,
    PoisoningStreamer,
    assert_same,
    break_off_anywhere,
    forward_loss,
    make_model,
    plain_steps,
    step,
    take_gradients,
    trainable,
)
from wan_train.tests.core.memory.precisions.helpers import load, write_model
from wan_train.tests.core.memory.test_copies import LaggingStream
from wan_train.tests.ranks import RankError

SIX = range(6)
MIXED = {
    "all": dict.fromkeys(SIX, "sharded"),
    "some": {1: "sharded", 2: "sharded", 4: "sharded"},
    "one": {3: "sharded"},
    "with swapped ones": {0: "pinned", 1: "sharded", 2: "pageable", 4: "sharded", 5: "sharded"},
    "with mapped ones": {0: "sharded", 1: "mapped", 3: "sharded", 5: "mapped"},
}


def hold(world, model, kinds, folder=None, *, slots=2, streamer=None):
    """`model` with its blocks where `kinds` has them, checkpointed."""
    maker = MasterMaker(kinds, CPU, folder=folder, world=world)
    held = hold_blocks(list(model.blocks), maker, slots=slots)
    if streamer is not None:
        held = streamer(list(model.blocks), CPU, masters=held.masters, slots=slots)
    model.run_block = held.wrap(with_checkpointing(call_block))
    return held


def steps_are_the_same(world, kinds, dtype, quant, slots, folder):
    model = make_model(CONFIG, dtype, quant)
    expected = plain_steps(model)
    streamer = hold(world, model, kinds, folder, slots=slots)
    for _ in range(2):
        for seed, shape in enumerate(SHAPES):
            with torch.no_grad():
                forward_loss(model, shape, seed)  # as validation does
            assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


@pytest.mark.grid(2)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kinds", MIXED.values(), ids=MIXED)
def test_loss_and_gradients_are_bit_equal(ranks, tmp_path, kinds, size):
    folder = tmp_path if "mapped" in kinds.values() else None
    ranks(size)(steps_are_the_same, kinds, torch.float32, None, 2, folder)


@pytest.mark.parametrize(
    ("dtype", "quant", "slots"), [(torch.bfloat16, None, 2), (torch.float32, "Q8_0", 3), (torch.float32, None, 1)]
)
def test_other_weights_and_rings(ranks, dtype, quant, slots):
    ranks(2)(steps_are_the_same, MIXED["all"], dtype, quant, slots, None)


def losses_and_gradients(model):
    parameters = [parameter for _, parameter in add_adapter(model, AdapterOptions(rank=2), seed=3)]
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8
    return [step(model.train(), shape, seed) for seed, shape in enumerate(SHAPES)]


def format_is_the_same(world, path, name):
    whole, spread = load(path, name), load(path, name)
    whole.run_block = with_checkpointing(call_block)
    streamer = hold(world, spread, {0: "sharded", 1: "sharded"})
    for found, expected in zip(losses_and_gradients(spread), losses_and_gradients(whole), strict=True):
        assert_same(found, expected)
    streamer.close()


@pytest.mark.parametrize("name", ["fp8", "int8", "nf4", "nf4 single", "int4_svd", "ara"])
def test_every_precision(ranks, tmp_path, name):
    ranks(2)(format_is_the_same, write_model(tmp_path), name)


def on_a_lagging_device(world):
    """Gathers are asked for ahead of need, and the computation waits for them."""
    model = make_model()
    expected = plain_steps(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "open_stream", lambda _: LaggingStream())
        streamer = hold(world, model, MIXED["with swapped ones"])
        for seed, shape in enumerate(SHAPES):
            with torch.no_grad():
                forward_loss(model, shape, seed)
            assert_same(step(model, shape, seed), expected[seed])
        streamer.close()


@pytest.mark.parametrize("size", [2, 4])
def test_on_a_device_whose_gathers_lag_behind(ranks, size):
    ranks(size)(on_a_lagging_device)


def gathered_ahead(world):
    model = make_model()
    streamer, held = hold(world, model, {0: "sharded", 2: "sharded", 4: "sharded"}), []

    def look(block, *inputs):
        held.append({slot.block for slot in streamer.slots})
        return call_block(block, *inputs)

    model.run_block = streamer.wrap(with_checkpointing(look))
    step(model, SHAPES[0])
    return held


def test_the_next_block_is_gathered_while_one_runs(ranks):
    (held, same) = ranks(2)(gathered_ahead)
    assert held == same
    assert held[:6] == [{0, 2}, {2, 4}, {2, 4}, {4, 2}, {4, 2}, {4, 2}]


def nothing_else_is_read(world):
    model = make_model()
    expected = plain_steps(model)
    hold(world, model, MIXED["all"], streamer=PoisoningStreamer)
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_only_the_slot_of_the_entered_block_is_read(ranks):
    ranks(2)(nothing_else_is_read)


def two_forwards(world):
    model = make_model()
    reference = copy.deepcopy(model)
    reference.run_block = with_checkpointing(call_block)
    hold(world, model, MIXED["all"])
    results = []
    for each in (reference, model):
        (forward_loss(each, SHAPES[0], 0) + forward_loss(each, SHAPES[1], 1)).backward()
        results.append(take_gradients(each))
    assert_same(results[1], results[0])


def test_two_forwards_before_one_backward(ranks):
    ranks(2)(two_forwards)


def offloaded(world):
    model = make_model()
    expected = plain_steps(model)
    streamer = hold(world, model, MIXED["all"])
    offload = ActivationOffload(CPU, list(model.blocks)[:-1], check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(with_checkpointing(call_block)))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_with_activation_offload(ranks):
    ranks(2)(offloaded)


def broken_off(world):
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    streamer = hold(world, model, MIXED["with swapped ones"])
    break_off_anywhere(model, streamer, expected)
    streamer.close()


def test_all_ranks_broken_off_anywhere_then_reset(ranks):
    ranks(2)(broken_off)


def memory_of_it(world):
    model = make_model()
    size = streamed_bytes(model.blocks[1])
    streamer = hold(world, model, MIXED["all"])
    storages = {tensor.untyped_storage() for block in model.blocks for tensor in frozen_tensors(block)}
    at_rest = sum(storage.nbytes() for storage in storages)
    share = share_bytes(size, world.size)
    assert [master.bytes.numel() for master in streamer.masters.values()] == [share] * 6
    assert streamer.bytes_on_device == sharded_bytes(size, blocks=6, ranks=world.size)
    assert [slot.bytes.numel() for slot in streamer.slots] == [gathered_bytes(size, world.size)] * 2
    assert streamer.bytes_on_host == 0
    assert at_rest <= 6 * 256 * len(frozen_tensors(model.blocks[0]))
    whole = make_model()
    for index, master in streamer.masters.items():
        parts = [torch.empty_like(master.bytes) for _ in range(world.size)]
        torch.distributed.all_gather(parts, master.bytes)
        found = master.layout.views(torch.cat(parts))
        assert all(map(torch.equal, found, frozen_tensors(whole.blocks[index])))


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_holds_its_shares_and_the_ring_and_no_more(ranks, size):
    ranks(size)(memory_of_it)


def weights_at_rest(world):
    model = make_model()
    before = [tensor.clone() for tensor in frozen_tensors(model.blocks[2])]
    streamer = hold(world, model, MIXED["all"])
    step(model, SHAPES[0])
    streamer.reset()
    floats = [tensor for tensor in frozen_tensors(model.blocks[2]) if tensor.is_floating_point()]
    assert all(tensor.isnan().all() for tensor in floats)
    with sharded.whole(model.blocks[2]):
        assert all(map(torch.equal, frozen_tensors(model.blocks[2]), before))
    assert all(tensor.isnan().all() for tensor in floats)
    with sharded.whole(make_model().blocks[2]):  # one that is whole
        pass


def test_a_block_at_rest_is_nobody_s_weights_and_can_be_had_whole(ranks):
    ranks(2)(weights_at_rest)


def through_all(world, ways, folder):
    model = make_model()
    expected = plain_steps(model, SHAPES[:1])[0]
    for kinds in ways:
        maker = MasterMaker(kinds, CPU, folder=folder if "mapped" in kinds.values() else None, world=world)
        streamer = hold_blocks(list(model.blocks), maker)
        run_block = with_checkpointing(call_block)
        model.run_block = run_block if streamer is None else streamer.wrap(run_block)
        assert_same(step(model, SHAPES[0]), expected)
        if streamer is not None:
            streamer.reset()
            streamer.close()
    return [sharded.master_of(block) is None for block in model.blocks]


def test_from_one_plan_to_the_next(ranks, tmp_path):
    ways = [
        *MIXED.values(),
        {},
        MIXED["some"],
        dict.fromkeys(SIX, "pinned"),
        MIXED["all"],
        dict.fromkeys(SIX, "pageable"),
    ]
    assert ranks(2)(through_all, ways, tmp_path) == [[True] * 6] * 2


def shares_are_used_on(world):
    model = make_model()
    first = hold(world, model, MIXED["all"]).masters
    second = hold(world, model, {0: "pinned", 1: "sharded", 2: "sharded"}).masters
    return [second[1] is first[1], second[2] is first[2], sharded.master_of(model.blocks[0]) is None]


def test_a_share_that_fits_the_next_plan_stays_where_it_is(ranks):
    assert ranks(2)(shares_are_used_on) == [[True] * 3] * 2


def dora_steps(world):
    options = AdapterOptions(kind="dora", rank=2, alpha=2.0, targets=("self_attn", "ffn"))
    results = []
    for is_spread in (False, True):
        model = make_model()
        fresh = copy.deepcopy(model)
        for block in fresh.blocks:
            block.requires_grad_(False)
        del model
        bare = _without_adapter(fresh)
        if is_spread:
            maker = MasterMaker(MIXED["all"], CPU, world=world)
            streamer = hold_blocks(list(bare.blocks), maker)
            add_adapter(bare, options, seed=1)
            bare.run_block = streamer.wrap(with_checkpointing(call_block))
        else:
            add_adapter(bare, options, seed=1)
            bare.run_block = with_checkpointing(call_block)
        for number, parameter in enumerate(trainable(bare)):
            if parameter.abs().sum() == 0:
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 8
        results.append(step(bare.train(), SHAPES[0]))
    assert_same(results[1], results[0])


def _without_adapter(model):
    from wan_train.tests.core.wan.conftest import build_model, make_weights

    return build_model(model.config, make_weights(model.config))


def test_an_adapter_that_reads_the_weights_reads_the_whole_ones(ranks):
    ranks(2)(dora_steps)


def unequal_forwards(world):
    model = make_model()
    hold(world, model, MIXED["all"])
    with torch.no_grad():
        forward_loss(model, SHAPES[0])
        if world.rank == 0:  # one forward more than the other
            model.run_block(model.blocks[3], *_inputs(model))
        else:
            model.run_block(model.blocks[0], *_inputs(model))
        forward_loss(model, SHAPES[0])


def _inputs(model):
    caught = []

    def catch(_block, *inputs):
        caught.append(inputs)
        return inputs[0]

    run_block, model.run_block = model.run_block, catch
    forward_loss(model, SHAPES[0])
    model.run_block = run_block
    return caught[0]


def test_ranks_that_come_apart_end_with_a_sentence(ranks):
    with pytest.raises(RankError, match="asked for different blocks"):
        ranks(2)(unequal_forwards)


def without_checkpointing(world):
    model = make_model()
    streamer = hold(world, model, MIXED["all"])
    model.run_block = streamer.wrap(call_block)
    with pytest.raises(ConfigError, match="checkpointing"):
        step(model, SHAPES[0])


def test_without_checkpointing_it_is_refused(ranks):
    ranks(2)(without_checkpointing)


def test_gpus_without_nccl_are_refused(monkeypatch):
    from wan_train.core.parallel.shards import check_gather

    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ConfigError, match="NCCL"):
        check_gather(torch.device("cuda"))
    check_gather(CPU)

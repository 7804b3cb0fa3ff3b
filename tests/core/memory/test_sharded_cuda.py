"""A sharded base and shared pinned memory on two GPUs: the same bits, gathers beside the computation, copies at full speed."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.master import streamed_bytes
from wan_train.core.memory.masters import MasterMaker
from wan_train.core.memory.shared import SharedMaster
from wan_train.core.memory.streaming import hold_blocks
from wan_train.core.parallel.shards import sharded_bytes
from wan_train.core.pinned import HostBuffer, SharedBuffer
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import PoisoningStreamer, assert_same, make_model, step

log = logging.getLogger(__name__)  # figures: pytest --log-cli-level INFO
pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or not dist.is_nccl_available(), reason="needs two GPUs and NCCL"
)

CONFIG = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=8, text_dim=64)  # 25 MB a block in bf16
LARGE = WanConfig(dim=3072, ffn_dim=12288, num_heads=24, num_layers=8, text_dim=64)  # 300 MB a block in bf16
SHAPES = ((1, 16, 3, 32, 32), (2, 16, 1, 16, 16), (1, 16, 5, 32, 32), (1, 16, 3, 32, 32))
EIGHT = range(8)


def on_gpu(world):
    """The world with NCCL between the GPUs of its ranks, and this rank's GPU."""
    device = torch.device("cuda", world.rank)
    torch.cuda.set_device(device)
    return replace(world, machine_group=dist.new_group(backend="nccl")), device


def made_on(device, config):
    """In main memory, all but the blocks on the GPU."""
    made = make_model(config, torch.bfloat16)
    for name, child in made.named_children():
        if name != "blocks":
            child.to(device)
    return made


def steps_are_the_same(world, kinds):
    world, device = on_gpu(world)
    with sdpa_kernel(SDPBackend.MATH):
        model = made_on(device, CONFIG)
        whole = copy.deepcopy(model).to(device)
        whole.run_block = with_checkpointing(call_block)
        expected = [step(whole, shape, seed) for seed, shape in enumerate(SHAPES)]
        streamer = hold_blocks(list(model.blocks), MasterMaker(kinds, device, world=world, tell=pytest.fail))
        model.run_block = streamer.wrap(with_checkpointing(call_block))
        for _ in range(3):
            for seed, shape in enumerate(SHAPES):
                assert_same(step(model, shape, seed), expected[seed])
        streamer.close()
        poisoning = PoisoningStreamer(list(model.blocks), device, masters=streamer.masters)
        model.run_block = poisoning.wrap(with_checkpointing(call_block))
        for seed, shape in enumerate(SHAPES):
            assert_same(step(model, shape, seed), expected[seed])
        poisoning.close()
    return {type(master) for master in streamer.masters.values()}


@pytest.mark.parametrize(
    "kinds",
    [
        dict.fromkeys(EIGHT, "sharded"),
        {1: "sharded", 3: "sharded", 4: "sharded", 7: "sharded"},
        dict.fromkeys(EIGHT, "pinned"),
        {0: "pinned", 1: "sharded", 2: "pageable", 4: "sharded", 5: "sharded", 6: "pinned"},
    ],
)
def test_gradients_are_bit_equal(ranks, kinds):
    found = ranks(2)(steps_are_the_same, kinds)
    assert all((SharedMaster in types) == ("pinned" in kinds.values()) for types in found)


def memory_of_it(world):
    world, device = on_gpu(world)
    model = made_on(device, LARGE)
    block = streamed_bytes(model.blocks[0])
    trained = sum(p.nbytes for p in model.blocks.parameters() if p.requires_grad)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    streamer = hold_blocks(list(model.blocks), MasterMaker(dict.fromkeys(EIGHT, "sharded"), device, world=world))
    peak = torch.cuda.max_memory_allocated(device) - before
    held = torch.cuda.memory_allocated(device) - before
    streamer.close()
    return block, held - trained, peak - trained


def test_a_gpu_takes_its_shares_and_two_slots(ranks):
    for block, held, peak in ranks(2)(memory_of_it):
        expected = sharded_bytes(block, blocks=8, ranks=2)
        assert expected <= held < expected + 2**23
        assert peak < expected + block


def times(world, config, shape):
    """Milliseconds of a step with the base whole, with it sharded, and of its gathers alone."""
    world, device = on_gpu(world)
    model = made_on(device, config)
    whole = copy.deepcopy(model).to(device)
    whole.run_block = with_checkpointing(call_block)
    streamer = hold_blocks(list(model.blocks), MasterMaker(dict.fromkeys(EIGHT, "sharded"), device, world=world))
    model.run_block = streamer.wrap(with_checkpointing(call_block))

    def gathers():
        for index in [*EIGHT, *reversed(EIGHT)][2:]:  # at the turn the last two are still there
            streamer.masters[index].gathered()

    found = [_milliseconds(act, world) for act in (lambda: step(whole, shape), lambda: step(model, shape), gathers)]
    streamer.close()
    return found


def _milliseconds(act, world, count=5):
    for _ in range(2):
        act()
    world.wait_for_all()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        act()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / count


def test_gathers_go_on_beside_the_computation(ranks):
    for whole, sharded, alone in ranks(2)(times, LARGE, (1, 16, 9, 60, 60)):
        log.info("whole %.1f ms, sharded %.1f ms, gathers alone %.1f ms", whole, sharded, alone)
        assert sharded < whole + 0.6 * alone


def rates(world):
    """GB/s from pinned memory of this process alone, and from pinned memory that both have, to this rank's GPU."""
    world, device = on_gpu(world)
    size, found = 2**30, []
    target = torch.empty(size, dtype=torch.uint8, device=device)
    own = HostBuffer(size, pinned=True)
    ticket = None
    if world.rank == 0:
        shared = SharedBuffer.create(size, pinned=True)
        shared.bytes.fill_(7)
        ticket = shared.ticket
    ticket = world.from_first(ticket)
    if world.rank == 1:
        shared = SharedBuffer.attach(ticket, pinned=True)
    world.wait_for_all()
    for source in (own.bytes, shared.bytes):
        milliseconds = _milliseconds(lambda source=source: target.copy_(source, non_blocking=True), world)
        found.append(size / milliseconds / 1e6)
    return *found, int(target.float().mean().item())


def test_shared_pinned_memory_is_as_fast_as_a_process_s_own(ranks):
    for own, shared, content in ranks(2)(rates):
        log.info("own %.1f GB/s, shared %.1f GB/s", own, shared)
        assert content == 7
        assert shared > 0.8 * own

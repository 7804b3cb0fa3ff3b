"""Streaming and offload on a GPU: the same bits while copies and computation overlap, and less memory."""

import contextlib
import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.master import BlockMaster, streamed_bytes
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.streaming import BlockStreamer, stream_blocks
from wan_train.core.pinned import HostBuffer
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import PoisoningStreamer, assert_same, make_model, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
CONFIG = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=8, text_dim=64)  # 25 MB a block in bf16
SHAPES = ((1, 16, 3, 32, 32), (2, 16, 1, 16, 16), (1, 16, 5, 32, 32), (1, 16, 3, 32, 32))


@pytest.fixture(autouse=True)
def same_order_of_sums():
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(scope="module")
def model():
    """In main memory, all but the blocks on the GPU."""
    made = make_model(CONFIG, torch.bfloat16)
    for name, child in made.named_children():
        if name != "blocks":
            child.to(CUDA)
    return made


@pytest.fixture(scope="module")
def expected(model):
    with sdpa_kernel(SDPBackend.MATH):
        whole = copy.deepcopy(model).to(CUDA)
        whole.run_block = with_checkpointing(call_block)
        return [step(whole, shape, seed) for seed, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("kind", ["pinned", "pageable", "mapped"])
@pytest.mark.parametrize(("indices", "slots"), [(range(8), 1), (range(8), 2), ((1, 3, 4, 7), 2), (range(8), 3)])
def test_gradients_are_bit_equal(tmp_path, model, expected, kind, indices, slots):
    model = copy.deepcopy(model)
    folder = tmp_path if kind == "mapped" else None
    blocks = list(model.blocks)
    streamer = stream_blocks(blocks, CUDA, streamed=indices, slots=slots, master=kind, folder=folder)
    offload = ActivationOffload(CUDA, blocks[:-1], check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(with_checkpointing(call_block)))
    for _ in range(3):
        for seed, shape in enumerate(SHAPES):
            assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


@pytest.mark.parametrize("others", ["pinned", "pageable"])
@pytest.mark.parametrize(("mapped", "slots"), [((3,), 2), ((0, 4, 7), 1), ((1, 4, 6), 2), ((1, 2, 5, 6), 3)])
def test_gradients_are_bit_equal_with_some_blocks_from_files(tmp_path, model, expected, others, mapped, slots):
    model = copy.deepcopy(model)
    blocks = list(model.blocks)
    streamer = stream_blocks(
        blocks, CUDA, streamed=range(8), slots=slots, master=others, mapped=mapped, folder=tmp_path
    )
    offload = ActivationOffload(CUDA, blocks[:-1], check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(with_checkpointing(call_block)))
    for _ in range(3):
        for seed, shape in enumerate(SHAPES):
            assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


def test_only_the_slot_of_the_entered_block_is_read(model, expected):
    model = copy.deepcopy(model)
    masters = {index: BlockMaster(block, "pinned", device=CUDA) for index, block in enumerate(model.blocks)}
    streamer = PoisoningStreamer(list(model.blocks), CUDA, masters=masters)
    model.run_block = streamer.wrap(with_checkpointing(call_block))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_peak_is_lower_and_steady(model):
    def peak(prepare):
        each = copy.deepcopy(model)
        kept = prepare(each)
        peaks = []
        for _ in range(4):
            torch.cuda.reset_peak_memory_stats()
            step(each, SHAPES[2])
            peaks.append(torch.cuda.max_memory_allocated())
        del kept
        return peaks

    def whole(each):
        each.to(CUDA)
        each.run_block = with_checkpointing(call_block)

    def frugal(each):
        streamer = stream_blocks(list(each.blocks), CUDA, streamed=range(8))
        offload = ActivationOffload(CUDA, list(each.blocks)[:-1], check_saved=streamer.check_saved)
        each.run_block = streamer.wrap(offload.wrap(with_checkpointing(call_block)))
        return streamer, offload

    high, low = peak(whole), peak(frugal)
    assert high[-1] - low[-1] > 6 * streamed_bytes(model.blocks[0]) * 0.9
    assert low[1:] == low[-1:] * 3


def test_host_buffers_are_pinned_to_the_byte():
    buffer = HostBuffer(12_345_678, pinned=True)
    assert buffer.bytes.numel() == 12_345_678
    runtime, address = torch.cuda.cudart(), buffer.bytes.data_ptr()
    already_registered = 712  # cudaErrorHostMemoryAlreadyRegistered; is_pinned knows only memory that torch has pinned
    assert int(runtime.cudaHostRegister(address, 12_345_678, 0)) == already_registered
    with contextlib.suppress(RuntimeError):  # CUDA reports it once more, at the next kernel
        torch.zeros(1, device=CUDA)
    buffer.bytes.fill_(7)
    assert buffer.bytes.to(CUDA, non_blocking=True).sum().item() == 7 * 12_345_678


def test_streamer_that_is_dropped_in_the_middle(model, expected):
    for count in (3, 11):
        each, calls = copy.deepcopy(model), []

        def failing(block, *inputs, calls=calls, count=count):
            calls.append(block)
            if len(calls) == count:
                raise MemoryError
            return call_block(block, *inputs)

        masters = {index: BlockMaster(block, "pinned", device=CUDA) for index, block in enumerate(each.blocks)}
        streamer = BlockStreamer(list(each.blocks), CUDA, masters=masters)
        each.run_block = streamer.wrap(with_checkpointing(failing))
        with pytest.raises(MemoryError):
            step(each, SHAPES[0])
        del streamer, each, masters
    fresh = copy.deepcopy(model)
    fresh.run_block = stream_blocks(list(fresh.blocks), CUDA, streamed=range(8)).wrap(with_checkpointing(call_block))
    assert_same(step(fresh, SHAPES[0]), expected[0])

"""Results of blocks in main memory on a GPU: the same bits while copies and computation overlap, and less memory."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan_train.core.memory import offload_results
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, mark_kept
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.train import kernel_mode
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.memory.helpers import assert_same, forward_loss, make_model, step, trainable

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
pytest.importorskip("triton")

CUDA = torch.device("cuda:0")
CONFIG = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=8, text_dim=64)
SHAPES = ((1, 16, 5, 32, 32), (2, 16, 1, 32, 32), (1, 16, 9, 32, 32), (1, 16, 5, 32, 32))
TARGETS = ("self_attn", "cross_attn", "ffn")


@pytest.fixture
def same_order_of_sums():
    with sdpa_kernel(SDPBackend.MATH):
        yield


def prepared(model, kept, *, streamed=(), inputs=False):
    model = copy.deepcopy(model)
    blocks = list(model.blocks)
    streamer = stream_blocks(blocks, CUDA, streamed=streamed) if streamed else None
    for name, part in model.named_children():
        if name != "blocks" or streamer is None:
            part.to(CUDA)
    check, own = (None, None) if streamer is None else (streamer.check_saved, streamer.own)
    offload = ActivationOffload(CUDA, blocks[:-1] if inputs else [], check_saved=check)
    rerun = kernel_mode.put_on(model, own=own, offload=offload if kept.moved else None)
    run = kernel_mode.whole_blocks(rerun, checkpointing=True)
    run = offload.wrap(run) if inputs else run
    model.run_block = run if streamer is None else streamer.wrap(run)
    mark_kept(blocks, kept)
    return model, offload, streamer


def free_bytes(offload):
    return sum(buffer.bytes.numel() for pool in (offload._pool, offload._others) for buffer in pool._free)


def steps(model, rounds=1):
    torch.manual_seed(5)
    return [step(model, shape, seed, all_learn=False) for _ in range(rounds) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module", params=[{}, {"dropout": 0.3}, {"kind": "dora"}], ids=str)
def model(request):
    return make_model(CONFIG, torch.bfloat16, targets=TARGETS, **request.param)


@pytest.mark.usefixtures("same_order_of_sums")
@pytest.mark.parametrize("least", [1, 2**20])
@pytest.mark.parametrize("kept", [Kept(0, 0, 8), Kept(8, 1, 4), Kept(4, 2, 2), Kept(0, 0, 1)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"inputs": True}, {"streamed": range(8)}, {"streamed": (1, 4, 6), "inputs": True}],
    ids=["alone", "with inputs", "with block swap", "with both"],
)
def test_gradients_are_bit_equal(model, kept, options, least, monkeypatch):
    monkeypatch.setattr(offload_results, "LEAST", least)
    expected = steps(prepared(model, Kept(8, 8), **options)[0], 2)
    moved, offload, _ = prepared(model, kept, **options)
    for found, plain in zip(steps(moved, 2), expected, strict=True):
        assert_same(found, plain)
    assert offload.bytes_on_host > 0
    assert free_bytes(offload) == offload.bytes_on_host


def peaks(model):
    found = []
    for _ in range(4):
        torch.cuda.reset_peak_memory_stats()
        step(model, SHAPES[2])
        found.append(torch.cuda.max_memory_allocated())
    return found


@pytest.mark.parametrize("number", [4, 7])
def test_peak_is_lower_and_steady(number):
    model = make_model(CONFIG, torch.bfloat16, targets=TARGETS)
    one = 9 * 16 * 16 * 2 * (8 * CONFIG.dim + CONFIG.ffn_dim)  # bytes that a block keeps, and some more
    there, _, _ = prepared(model, Kept(8, 8))
    high = peaks(there)
    del there
    moved, offload, _ = prepared(model, Kept(8, 8 - number, number))
    low = peaks(moved)
    assert high[-1] - low[-1] > 0.9 * (number - 1) * one  # one block's may be on its way
    assert low[1:] == low[-1:] * 3
    assert offload.bytes_on_host == pytest.approx(number * one, rel=0.1)


@pytest.mark.usefixtures("same_order_of_sums")
def test_steps_that_break_off_leave_nothing():
    model, offload, _ = prepared(make_model(CONFIG, torch.bfloat16, targets=TARGETS), Kept(0, 0, 5), inputs=True)
    expected = step(model, SHAPES[0])
    torch.cuda.synchronize()
    before, taken = torch.cuda.memory_allocated(), offload.bytes_on_host
    loss = forward_loss(model, SHAPES[0])
    del loss
    loss = forward_loss(model, SHAPES[0])
    torch.autograd.grad(loss, trainable(model)[-1:])  # of the last block's adapter: the others get nothing
    del loss
    offload.reset()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert free_bytes(offload) == offload.bytes_on_host == taken
    assert_same(step(model, SHAPES[0]), expected)

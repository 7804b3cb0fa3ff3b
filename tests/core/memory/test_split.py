"""Blocks in parts: the same numbers to the bit, with every other feature, and a clearly smaller peak."""

import copy

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, mark_kept
from wan_train.core.memory.split import with_recompute, with_split
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.layers import PARTS
from wan_train.core.wan.model import call_block, call_part
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CONFIG,
    CPU,
    SHAPES,
    SHORT_CONFIG,
    assert_same,
    forward_loss,
    make_model,
    plain_steps,
    step,
    take_gradients,
)
from wan_train.tests.core.plan.test_estimate import backward_peak

FRAMES_CONFIG = WanConfig(
    variant="ti2v", in_dim=48, out_dim=48, dim=32, ffn_dim=64, num_heads=2, num_layers=3, text_dim=16
)


def split(wrap=None):
    return with_split(with_recompute(call_part), PARTS, wrap)


def same_steps(model, expected):
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


@pytest.mark.parametrize(
    ("config", "dtype", "quant"),
    [(CONFIG, torch.float32, None), (CONFIG, torch.bfloat16, "Q8_0"), (CLIP_CONFIG, torch.float32, None)],
    ids=["t2v", "quantized bf16", "clip"],
)
def test_gradients_are_those_of_whole_blocks(config, dtype, quant):
    model = make_model(config, dtype, quant)
    expected = plain_steps(model)
    model.run_block = split()
    same_steps(model, expected)


def test_a_timestep_for_each_frame():
    """TI2V-5B: the modulation differs from frame to frame."""
    model = make_model(FRAMES_CONFIG)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 48, 3, 4, 6, generator=generator)
    context = torch.randn(1, 7, 16, generator=generator)
    timesteps = torch.tensor([[0.0, 400.0, 400.0]])
    found = []
    for run_block in (with_checkpointing(call_block), split()):
        model.run_block = run_block
        model(latents, timesteps, context).square().mean().backward()
        found.append(take_gradients(model))
    assert_same(*found)


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize(
    ("config", "dtype"), [(CONFIG, torch.float32), (CLIP_CONFIG, torch.bfloat16)], ids=["t2v", "clip"]
)
def test_with_streaming_offload_and_kept_attention(config, dtype, keep):
    model = make_model(config, dtype)
    expected = plain_steps(model)
    blocks = list(model.blocks)
    streamer = stream_blocks(blocks, CPU, streamed=range(config.num_layers), master="pageable")
    offload = ActivationOffload(CPU, blocks[:-1], check_saved=streamer.check_saved)
    mark_kept(blocks, Kept(attention=keep))
    model.run_block = streamer.wrap(split(offload.wrap))
    same_steps(model, expected)
    tokens = [shape[0] * shape[2] * shape[3] * shape[4] // 4 for shape in SHAPES]
    inputs = config.num_layers - 1 + max(keep - 1, 0)
    assert offload.bytes_on_host == inputs * max(tokens) * config.dim * dtype.itemsize
    streamer.close()


def test_dropout_drops_the_same_when_parts_are_recomputed():
    model = make_model(dropout=0.3)
    found = []
    for run_block in (with_checkpointing(call_block), split()):
        model.run_block = run_block
        torch.manual_seed(3)
        found.append([*step(model, SHAPES[0]), torch.rand(1)])
    assert_same(*found)


def test_inputs_get_their_gradients():
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=generator) for size in ((1, 12, 32), (1, 1, 6, 32), (1, 7, 32))]
    rope = model.rope((2, 2, 3), CPU)
    found = []
    for run_block in (call_block, split()):
        x, time_mod, context = (tensor.clone().requires_grad_() for tensor in inputs)
        run_block(model.blocks[0], x, time_mod, rope, context).square().sum().backward()
        assert all(tensor.grad is not None for tensor in (x, time_mod, context))
        found.append([x.grad, time_mod.grad, context.grad])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_a_copy_of_the_model_runs_its_own_blocks():
    model = make_model()
    expected = plain_steps(model)
    model.run_block = split()
    clone = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    same_steps(clone, expected)


def test_without_gradients_nothing_changes():
    model = make_model()
    with torch.no_grad():
        expected = forward_loss(model, SHAPES[0])
        model.run_block = split()
        assert torch.equal(forward_loss(model, SHAPES[0]), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_there_is_a_graph_for_each_part(dynamic):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(SHORT_CONFIG)
    expected = plain_steps(model)
    counter = CompileCounterWithBackend("eager")
    compiled = with_compile(with_recompute(call_part), tell=pytest.fail, dynamic=dynamic, backend=counter)
    model.run_block = with_split(compiled, PARTS)
    for seed in (0, 2) if dynamic else (0,):  # of one sample; dynamic graphs are made anew for batches
        assert_same(step(model, SHAPES[seed], seed), expected[seed])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * len(PARTS)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_of_a_backward_is_clearly_smaller(dtype):
    assert backward_peak(split(), dtype) < 0.65 * backward_peak(with_checkpointing(call_block), dtype)

"""The feed-forward in pieces: the same gradients up to rounding, with every other feature, and a clearly smaller peak."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from wan_train.core.adapters.fused import fuse_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.chunking import ROUND, chunked, cut, piece_length
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, with_selective_recompute
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.wan.layers import PARTS
from wan_train.core.wan.model import call_block, call_part
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CPU,
    SHORT_CONFIG,
    assert_same,
    forward_loss,
    make_model,
    plain_steps,
    step,
    take_gradients,
)
from wan_train.tests.core.plan.test_estimate import backward_peak

PIECES = 3
SHAPES = ((1, 16, 3, 24, 20), (2, 16, 2, 24, 20))  # 360 and 240 tokens: three and two pieces
TI2V_CONFIG = replace(SHORT_CONFIG, variant="ti2v", in_dim=48, out_dim=48)


def in_pieces(pieces=PIECES):
    return chunked(call_part, PARTS, pieces)


def close_steps(model, expected, shapes=SHAPES):
    """Within the rounding of sums in another order, in the dtype of the blocks."""
    tolerance = 2e-5 if model.dtype == torch.float32 else 3e-2
    for seed, shape in enumerate(shapes):
        for found, reference in zip(step(model, shape, seed), expected[seed], strict=True):
            assert (found - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize(
    ("config", "dtype", "quant"),
    [(SHORT_CONFIG, torch.float32, None), (SHORT_CONFIG, torch.bfloat16, "Q8_0"), (CLIP_CONFIG, torch.float32, None)],
    ids=["t2v", "quantized bf16", "clip"],
)
def test_gradients_are_those_of_whole_blocks(config, dtype, quant):
    model = make_model(config, dtype, quant)
    expected = plain_steps(model, SHAPES)
    calls = []

    def run_part(block, x, part, *others):
        calls.append((part, x.shape[1]))
        return call_part(block, x, part, *others)

    model.run_block = with_checkpointing(chunked(run_part, PARTS, PIECES))
    close_steps(model, expected)
    first = [("self_attn", 360), ("cross_attn", 360), ("ffn", 128), ("ffn", 128), ("ffn", 104)]
    assert calls[: len(first)] == first


@pytest.mark.parametrize("kept", [Kept(2), Kept(2, 1), Kept(3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_kept_results_streaming_and_offload(dtype, kept):
    model = make_model(SHORT_CONFIG, dtype)
    fuse_adapter(model)
    expected = plain_steps(model, SHAPES)
    blocks = list(model.blocks)
    streamer = stream_blocks(blocks, CPU, streamed=range(len(blocks)), master="pageable")
    offload = ActivationOffload(CPU, blocks[:-1], check_saved=streamer.check_saved)
    run_block = with_selective_recompute(in_pieces(), blocks, kept, width=model.config.dim)
    model.run_block = streamer.wrap(offload.wrap(run_block))
    close_steps(model, expected)
    assert offload.bytes_on_host == 2 * 480 * model.config.dim * dtype.itemsize
    streamer.close()


@pytest.mark.parametrize("pieces", [2, 4])
def test_a_timestep_for_each_frame(pieces):
    """As the model with 5 billion parameters has it: a piece is of whole frames, three here."""
    model = make_model(TI2V_CONFIG)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 48, 3, 16, 10, generator=generator)
    context = torch.randn(1, 7, TI2V_CONFIG.text_dim, generator=generator)
    timesteps = torch.tensor([[0.0, 400.0, 700.0]])
    found = []
    for run_block in (call_block, in_pieces(pieces)):
        model.run_block = with_checkpointing(run_block)
        model(latents, timesteps, context).square().mean().backward()
        found.append(take_gradients(model))
    for ours, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_a_time_modulation_for_each_token_is_cut_with_it():
    """In fp32; the gradient of the modulation too."""
    model = make_model(SHORT_CONFIG)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((1, 300, 32), (1, 300, 6, 32), (1, 7, 32))]
    rope = model.rope((3, 10, 10), CPU)
    found = []
    for run_block in (call_block, in_pieces()):
        x, time_mod, context = (tensor.clone().requires_grad_() for tensor in tensors)
        with_checkpointing(run_block)(model.blocks[0], x, time_mod, rope, context).square().sum().backward()
        found.append([x.grad, time_mod.grad, context.grad, *take_gradients(model.blocks[0])])
    for ours, reference in zip(found[1], found[0], strict=True):
        assert (ours - reference).norm() <= 1e-5 * reference.norm()


def test_pieces_and_their_modulations():
    x, each = torch.arange(14040.0).view(1, -1, 1), torch.zeros(1, 1, 6, 1)
    lengths = [piece.shape[1] for piece, _ in cut(x, each, 4)]
    assert lengths == [3584, 3584, 3584, 3288]
    assert piece_length(14040, 4) % ROUND == 0
    frames = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 6, 1)
    for piece, rows in cut(x, frames, 4):
        assert torch.equal(rows[0, :, 0, 0].repeat_interleave(1560), (piece[0, :, 0] / 1560).floor())
    assert [piece.shape[1] for piece, _ in cut(x, frames, 4)] == [4680] * 3


def test_dropout_drops_the_same_when_pieces_are_recomputed():
    """Against what autograd keeps of the forward's own numbers."""
    model = make_model(SHORT_CONFIG, dropout=0.3)
    found = []
    for wrap in (_same, with_checkpointing):
        model.run_block = wrap(_plain_pieces if wrap is _same else in_pieces())
        torch.manual_seed(3)
        found.append([*step(model, SHAPES[0]), torch.rand(1)])
    assert_same(*found)


def test_without_gradients_nothing_changes():
    model = make_model(SHORT_CONFIG)
    with torch.no_grad():
        expected = forward_loss(model, SHAPES[0])
        model.run_block = with_checkpointing(in_pieces())
        torch.testing.assert_close(forward_loss(model, SHAPES[0]), expected, rtol=1e-5, atol=0)
        clone = copy.deepcopy(model)
        assert torch.equal(forward_loss(clone, SHAPES[0]), forward_loss(model, SHAPES[0]))


@pytest.mark.parametrize(("dynamic", "backend"), [(False, "aot_eager"), (True, "eager")])
def test_compiled_it_is_the_same_up_to_rounding(dynamic, backend, monkeypatch):
    """Graphs of forward and backward as they are, or, with one graph for both sizes, of the forward: others take long."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep each record
    torch._dynamo.reset()
    model = make_model(replace(SHORT_CONFIG, num_layers=2))
    shapes = ((1, 16, 3, 24, 20), (1, 16, 4, 24, 20)) if dynamic else SHAPES[:1]
    expected = plain_steps(model, shapes)
    run_block = with_selective_recompute(in_pieces(), model.blocks, Kept(2))
    model.run_block = with_compile(run_block, tell=pytest.fail, dynamic=dynamic, backend=backend)
    close_steps(model, expected, shapes)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_of_a_backward_is_clearly_smaller(dtype):
    whole, pieces = (backward_peak(with_checkpointing(run), dtype) for run in (call_block, in_pieces(4)))
    assert pieces < 0.8 * whole


def _same(run_block):
    return run_block


def _plain_pieces(block, x, time_mod, *others):
    """What `chunked` computes, with nothing recomputed."""
    for part in PARTS[:-1]:
        x = call_part(block, x, part, time_mod, *others)
    pieces = [call_part(block, piece, PARTS[-1], mods, *others) for piece, mods in cut(x, time_mod, PIECES)]
    return torch.cat(pieces, dim=1)

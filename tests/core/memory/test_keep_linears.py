"""Blocks that keep what their linear layers give: the same gradients, few products a second time, bytes as planned."""

import logging
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from wan_train.core.adapters.fused import fuse_adapter
from wan_train.core.memory.compile import with_compile
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, attention_bytes, linears_bytes, with_selective_recompute
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.wan.model import call_block
from wan_train.tests.core.memory.helpers import (
    CLIP_CONFIG,
    CONFIG,
    CPU,
    SHAPES,
    assert_same,
    forward_loss,
    make_model,
    plain_steps,
    step,
    take_gradients,
)
from wan_train.tests.core.memory.test_recompute import bytes_added

NUM_BLOCKS = CONFIG.num_layers
TI2V_CONFIG = replace(CONFIG, variant="ti2v", in_dim=48, out_dim=48)


class CountProducts(TorchDispatchMode):
    """Counts the products of layers by (in, out); those of the adapter's factors and of gradients are narrower or mm."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.addmm.default and min(args[2].shape) >= CONFIG.dim:
            self.counts[tuple(args[2].shape)] += 1
        return func(*args, **(kwargs or {}))


def fused(config=CONFIG, *args, **options):
    model = make_model(config, *args, **options)
    fuse_adapter(model)
    return model


def keeping(model, linears, attention=0):
    return with_selective_recompute(call_block, model.blocks, Kept(attention, linears), width=model.config.dim)


@pytest.mark.parametrize("linears", [0, 1, NUM_BLOCKS])
def test_products_are_computed_once_in_kept_blocks_and_twice_in_others(linears):
    """Eight of the block's own width, two with the feed-forward's; its last is not kept, and nothing asks for it again."""
    model = fused()
    expected = step(model, SHAPES[0])
    model.run_block = keeping(model, linears)
    with CountProducts() as counter:
        found = step(model, SHAPES[0])
    assert_same(found, expected)
    twice = 2 * NUM_BLOCKS - linears
    assert counter.counts[(32, 32)] == 8 * twice + 2  # of the embeddings, once
    assert counter.counts[(32, 64)] == twice + 1  # of the head
    assert NUM_BLOCKS <= counter.counts[(64, 32)] <= 2 * NUM_BLOCKS


@pytest.mark.parametrize("attention", [0, 2, 5])
@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG], ids=lambda config: config.variant)
def test_gradients_are_bit_equal_over_shapes_and_variants(config, attention):
    model = fused(config)
    expected = plain_steps(model)
    model.run_block = keeping(model, 3, min(attention, config.num_layers))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])


def test_with_a_timestep_for_each_frame():
    """As the model with 5 billion parameters has it, whose first frame is given."""
    torch.manual_seed(0)
    latents, context = torch.randn(1, 48, 2, 4, 6), torch.randn(1, 7, TI2V_CONFIG.text_dim)
    found = {}
    for linears in (0, 4):
        model = fused(TI2V_CONFIG)
        model.run_block = keeping(model, linears)
        model(latents, torch.tensor([[0.0, 300.0]]), context).square().mean().backward()
        found[linears] = take_gradients(model)
    assert_same(found[4], found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streamed_and_offloaded_it_is_the_same(dtype):
    model = fused(CONFIG, dtype, "Q8_0" if dtype == torch.float32 else None)
    expected = plain_steps(model)
    blocks = list(model.blocks)
    streamer = stream_blocks(blocks, CPU, streamed=range(NUM_BLOCKS))
    offload = ActivationOffload(CPU, blocks[:-1], check_saved=streamer.check_saved)
    model.run_block = streamer.wrap(offload.wrap(keeping(model, 4)))
    for seed, shape in enumerate(SHAPES):
        assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


def test_bytes_kept_are_those_planned():
    batch, _, frames, height, width = shape = SHAPES[2]
    tokens = batch * frames * height * width // 4
    model = fused()
    model.run_block = keeping(model, 0)
    step(model, shape)  # the rope table of this size stays
    kept = {}
    for linears in (0, NUM_BLOCKS):
        model.run_block = keeping(model, linears)
        kept[linears] = bytes_added(lambda: forward_loss(model, shape))
    planned = linears_bytes(tokens, 7, CONFIG.dim, CONFIG.ffn_dim, 4)
    planned += attention_bytes(tokens, CONFIG.dim, CONFIG.num_heads, 4)
    assert planned * NUM_BLOCKS <= kept[NUM_BLOCKS] - kept[0] < 1.05 * planned * NUM_BLOCKS


def test_compiled_it_is_the_same_up_to_rounding_and_torch_does_not_warn(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep each record
    torch._logging._internal.warning_once.cache_clear()
    told, logger = [], logging.getLogger("torch._higher_order_ops.wrap")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]  # of the whole process
    num_graphs = stats["unique_graphs"]
    model = fused()
    expected = step(model, SHAPES[0])
    model.run_block = with_compile(keeping(model, NUM_BLOCKS), tell=pytest.fail, backend="aot_eager")
    for result, reference in zip(step(model, SHAPES[0]), expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-6)
    assert stats["unique_graphs"] == num_graphs + 1
    logger.warning("something else")
    assert told == ["something else"]
    torch._dynamo.reset()

"""Blocks in parts on a GPU: the same bits with streaming and offload, and the peak that the estimate says."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan_train.core.adapters.fused import fuse_adapter
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.offload import ActivationOffload
from wan_train.core.memory.recompute import Kept, mark_kept
from wan_train.core.memory.split import with_recompute, with_split
from wan_train.core.memory.streaming import stream_blocks
from wan_train.core.plan.block_bytes import part_units, saved_by_part
from wan_train.core.plan.sizes import Trained
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.layers import PARTS
from wan_train.core.wan.model import WanTransformer, call_block, call_part
from wan_train.tests.core.memory.helpers import assert_same, make_model, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda:0")
CONFIG = WanConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=8, text_dim=64)
SHAPES = ((1, 16, 3, 32, 32), (2, 16, 1, 16, 16), (1, 16, 5, 32, 32))


def test_gradients_are_bit_equal():
    model = make_model(CONFIG, torch.bfloat16)
    for name, child in model.named_children():
        if name != "blocks":
            child.to(CUDA)
    with sdpa_kernel(SDPBackend.MATH):
        whole = copy.deepcopy(model).to(CUDA)
        whole.run_block = with_checkpointing(call_block)
        expected = [step(whole, shape, seed) for seed, shape in enumerate(SHAPES)]
        blocks = list(model.blocks)
        streamer = stream_blocks(blocks, CUDA, streamed=range(8))
        offload = ActivationOffload(CUDA, blocks, check_saved=streamer.check_saved)
        mark_kept(blocks, Kept(attention=3))
        model.run_block = streamer.wrap(with_split(with_recompute(call_part), PARTS, offload.wrap))
        for _ in range(3):
            for seed, shape in enumerate(SHAPES):
                assert_same(step(model, shape, seed), expected[seed])
    streamer.close()


@pytest.mark.parametrize("part", PARTS)
def test_the_peak_of_a_part_of_the_14b_model(part):
    config, grid = WanConfig(num_layers=1), (9, 30, 52)
    with torch.device("meta"):
        model = WanTransformer(config)
    model.blocks.to_empty(device=CUDA)
    block = model.blocks[0]
    for layer in block.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.to(torch.bfloat16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter.data, std=0.01)
    add_adapter(model, AdapterOptions(rank=16, alpha=16.0, targets=PARTS), seed=0)
    fuse_adapter(model)
    tokens = grid[0] * grid[1] * grid[2]
    x = torch.randn(1, tokens, config.dim, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    context = torch.randn(1, 512, config.dim, dtype=torch.bfloat16, device=CUDA)
    others = torch.randn(1, 1, 6, config.dim, device=CUDA), model.rope(grid, CUDA), context
    trained = [p for name, p in block.named_parameters() if p.requires_grad and name.startswith(part)]
    run = with_checkpointing(call_part)
    peaks = []
    for _ in range(2):  # the first takes workspaces
        y = run(block, x, part, *others)
        grad = torch.ones_like(y)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(y, [x, *trained], grad)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    saved = saved_by_part(config, Trained(rank=16), tokens=tokens, element_size=2)
    units = part_units(config, "bf16", 2)
    said = {each: saved[each] / x.nbytes + units[each] - 1 for each in PARTS}  # `grad` was there before
    found = peaks[-1] / x.nbytes
    # It is the largest part that is planned with. The attention takes 20.6 units on an H200 and 19 on an H100.
    assert 0.7 * said[part] < found < 1.07 * max(said.values()), f"{found + 1:.1f} units, not {said[part] + 1:.1f}"

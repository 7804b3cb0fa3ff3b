"""Blocks by kernels at full size: nothing waits for the device, and kernels get what they can read."""

import pytest
import torch

pytest.importorskip("triton")
from wan_train.core.train import kernel_mode
from wan_train.tests.core.kernels.without_numbers import (
    CONFIG,
    META,
    inputs,
    make_model,
    take_launches,
    tell_noise,
    use_attention,
)

TOKENS, TIMESTEPS = 75_600, 21  # 81 frames of 1280 x 720
DROPS = {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1}
WAYS = {
    "lora": {},
    "lora drops": DROPS,
    "tlora": {"kind": "tlora", **DROPS},
    "dora": {"kind": "dora"},
    "dora drops": {"kind": "dora", **DROPS},
    "loha": {"kind": "loha"},
    "loha drops": {"kind": "loha", **DROPS},
    "lokr": {"kind": "lokr"},
    "lokr whole": {"kind": "lokr", "lokr_full": True, "lokr_factor": 16, **DROPS},
    "oft": {"kind": "oft", "oft_constraint": 1.0, "module_dropout": 0.1},
    "of one layer": {"kind": "dora", "include": "ffn.2"},
}


@pytest.fixture
def launches(monkeypatch):
    return take_launches(monkeypatch)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("checkpointing", "pieces"), [(True, 1), (True, 4), (False, 1)], ids=str)
def test_a_block_of_more_numbers_than_32_bits_count(launches, way, checkpointing, pieces):
    batch = 3
    assert batch * TOKENS * CONFIG.ffn_dim > 2**31
    model = make_model(**WAYS[way])
    run = kernel_mode.whole_blocks(kernel_mode.put_on(model), checkpointing=checkpointing, pieces=pieces)
    use_attention(model)
    tell_noise(model, batch)
    x, others = inputs(batch=batch, tokens=TOKENS, timesteps=TIMESTEPS)
    wanted = [x, *(each for each in model.parameters() if each.requires_grad)]
    y = run(model.blocks[0], x, *others)
    gradients = torch.autograd.grad(y, wanted, torch.empty_like(y))
    assert [(g.shape, g.dtype, g.device) for g in gradients] == [(w.shape, w.dtype, w.device) for w in wanted]
    grids, given = launches
    assert {name for name, _ in grids} >= {"_forward", "_backward", "_gated", "_gelu", "_gelu_gradient"}
    assert max(size for _, grid in grids for size in grid[1:]) < 2**16  # CUDA's limit of all axes but the first
    assert {each.device for each in given} == {META}
    for each in given:
        is_factor = len(each.shape) == 3 and each.shape[1] <= TIMESTEPS  # shift, scale or gate, whose stride is told
        assert each.is_contiguous or (is_factor and each.stride[2] == 1), each

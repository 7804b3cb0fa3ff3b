"""4 bits: packing, the quantizers against straight computations, the branch against the exact decomposition."""

import pytest
import torch
from wan_train.core.memory.int4 import grouped_values, pack, quantize_groups, unpack
from wan_train.core.memory.precisions.ara import quantize_uint4
from wan_train.core.memory.precisions.int4_svd import low_rank, make_int4
from wan_train.tests.core.memory.precisions.helpers import factors, make_layer, random


def test_packing_is_undone_by_unpacking():
    levels = torch.arange(7 * 32, dtype=torch.uint8).view(7, 32) % 16
    assert pack(levels).shape == (7, 16)
    assert torch.equal(unpack(pack(levels)), levels)


@pytest.mark.parametrize("group", [64, 4, 1])
def test_the_error_of_a_group_is_bounded_by_its_range(group):
    values = 0.1 * random(9, 128)
    values[0] = values[0].abs() + 1  # one sign alone
    values[1] = 0
    values[2, 5] = 30
    levels, scale, zero = quantize_groups(values, group)
    assert (levels.dtype, scale.dtype, zero.dtype) == (torch.uint8, torch.bfloat16, torch.uint8)
    assert levels.max() <= 15
    meant = grouped_values(pack(levels), scale, zero, (9, 128)).float()
    grouped = values.unflatten(1, (-1, group))
    span = grouped.amax(2).clamp(min=0) - grouped.amin(2).clamp(max=0)
    step = (span / 15)[..., None]
    squared = (meant.unflatten(1, (-1, group)) - grouped).square()
    # Without clipping every number is within one step and bf16's rounding of it; the chosen range is no worse in sum.
    assert (squared.sum(2) <= (step * 1.1).square().sum(2) * group + 1e-12).all()
    assert squared[4:].mean().sqrt() <= step[4:].mean() * 0.33 + 1e-6  # a uniform error of one step has 0.29


def test_clipping_lowers_the_error():
    values = 0.1 * random(64, 256)
    levels, scale, zero = quantize_groups(values, 64)
    ours = grouped_values(pack(levels), scale, zero, (64, 256)).float()
    levels, scale, zero = quantize_uint4(values.bfloat16())
    theirs = grouped_values(pack(levels), scale, zero, (64, 256)).float()
    assert (ours - values).square().mean() < 0.95 * (theirs - values).square().mean()


def straight_uint4(group):
    """AI-Toolkit's uint4 of 64 numbers, one operation and one rounding to bf16 at a time."""

    def bf16(value):
        return torch.tensor(value, dtype=torch.float64).float().bfloat16().double().item()

    low, high = min(*group, 0.0), max(*group, 0.0)
    scale = max(bf16(bf16(high - low) / 15), bf16(2.0**-23))
    zero = min(max(-round(bf16(low / scale)), 0), 15)
    reciprocal = bf16(1 / scale)
    levels = [min(max(bf16(round(bf16(value * reciprocal)) + zero), 0), 15) for value in group]
    return levels, scale, zero, [bf16((level - zero) * scale) for level in levels]


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 0.05, 7.0])
def test_uint4_is_ai_toolkits_to_the_bit(factor):
    weight = (factor * random(6, 192)).bfloat16()
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    weight[2, :64] = 0
    levels, scale, zero = quantize_uint4(weight)
    values = grouped_values(pack(levels), scale, zero, (6, 192))
    for row in range(6):
        for index in range(3):
            part = slice(64 * index, 64 * index + 64)
            expected = straight_uint4(weight[row, part].double().tolist())
            assert levels[row, part].tolist() == expected[0]
            assert scale[row, index].item() == expected[1]
            assert zero[row, index].item() == expected[2]
            assert values[row, part].tolist() == expected[3]


def test_the_adapter_is_added_to_the_quantized_weight():
    weight = 0.1 * random(32, 128)
    layer = make_layer("ara", weight)
    levels, scale, zero = quantize_uint4(weight.bfloat16())
    down, up = factors(32, 128)
    expected = grouped_values(pack(levels), scale, zero, (32, 128)).float() + up @ down
    assert torch.allclose(layer.matrix(), expected, rtol=0, atol=1e-7)


def test_low_rank_is_nearly_the_best_and_repeats_itself():
    matrix = random(40, 24) @ torch.diag(torch.logspace(0, -3, 24)) @ random(24, 56, seed=1)
    state = torch.random.get_rng_state()
    up, down = low_rank(matrix, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (up.shape, down.shape) == ((40, 4), (4, 56))
    best = torch.linalg.svdvals(matrix)[4:].norm()
    assert (matrix - up @ down).norm() < 1.01 * best
    assert all(map(torch.equal, low_rank(matrix, 4), (up, down)))


def test_the_branch_takes_its_share_of_the_error_and_more_rank_more():
    weight = 0.1 * random(96, 128)
    errors = []
    for rank in (1, 8, 32, 96):
        layer = make_int4("layer", weight, None, dtype=torch.float32, bias=None, rank=rank)
        errors.append((layer.matrix() - weight).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.75 * errors[0]  # 32 of the 96 directions of an error without structure
    assert errors[3] < 1e-4 * weight.norm()  # all of them

"""What every format has in common: it is a frozen linear layer that computes with its own dequantized weight."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from wan_train.core.memory.frozen_linear import FrozenLinear
from wan_train.tests.core.memory.precisions.helpers import FORMATS, STORED, make_layer, random

# Bits per number, with scales, zero points and factors of rank 4, at [192, 320]
BITS = {"fp8": 8.2, "fp8_compute": 8.2, "int8": 8.2, "nf4 single": 4.51, "nf4": 4.28, "int4_svd": 5.5, "ara": 5.5}


def run(module, x, probe):
    """Output, and gradient of (output * probe).sum() with respect to x."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * probe).sum().backward()
    return y.detach(), x.grad


def plain_twin(layer, dtype=torch.float32):
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
    plain.weight.data = layer.matrix(dtype)
    if layer.bias is not None:
        plain.bias.data = layer.bias.data
    return plain.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STORED)
def test_layer_computes_what_its_dequantized_weight_computes(name, dtype):
    for out_features, in_features, has_bias in [(96, 192, True), (5, 64, True), (33, 128, False)]:
        weight = 0.1 * random(out_features, in_features, dtype=dtype)
        layer = make_layer(name, weight, random(out_features) if has_bias else None, dtype)
        assert (layer.out_features, layer.in_features) == (out_features, in_features)
        x, probe = random(2, 7, in_features, dtype=dtype), random(2, 7, out_features, seed=1, dtype=dtype)
        results, expected = run(layer, x, probe), run(plain_twin(layer, dtype), x, probe)
        assert all(map(torch.equal, results, expected))
        with torch.no_grad():
            assert torch.equal(layer(x), expected[0])
        assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["fp8", "int8", "nf4", "nf4 single", "int4_svd"])
def test_widths_that_no_group_divides(name):
    layer = make_layer(name, 0.1 * random(7, 36), random(7))
    x, probe = random(3, 36), random(3, 7, seed=1)
    assert all(map(torch.equal, run(layer, x, probe), run(plain_twin(layer), x, probe)))
    assert (layer.matrix() - 0.1 * random(7, 36)).abs().max() < 0.05


def test_layers_that_a_format_does_not_cover_stay_plain():
    with pytest.raises(AssertionError):
        make_layer("int4_svd", random(8, 35))
    with pytest.raises(AssertionError):
        make_layer("ara", random(8, 96))


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_as_small_as_it_should_be(name):
    layer = make_layer(name, random(192, 320))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert stored * 8 / (192 * 320) < BITS[name] + (0.55 if name == "nf4" else 0)  # its table of 256 is 1 KB


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_but_the_frozen_tensors_is_kept_for_the_backward(name):
    layer, kept = make_layer(name, random(96, 128), random(96)), []

    def pack(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(random(3, 128).requires_grad_())
    assert kept
    assert set(kept) <= {tensor.untyped_storage().data_ptr() for tensor in layer.tensors}


@pytest.mark.parametrize("name", FORMATS)
def test_copies_and_checkpointing_change_nothing(name):
    layer = make_layer(name, random(96, 128), random(96))
    x, probe = random(3, 128), random(3, 96, seed=1)
    expected = run(layer, x, probe)
    copied = copy.deepcopy(layer)
    assert isinstance(copied, type(layer))
    assert copied.weight.data_ptr() != layer.weight.data_ptr()
    assert all(map(torch.equal, run(copied, x, probe), expected))
    assert all(map(torch.equal, run(lambda x: checkpoint(layer, x, use_reentrant=False), x, probe), expected))


@pytest.mark.parametrize("name", FORMATS)
def test_a_change_of_dtype_reaches_the_arithmetic_and_not_the_stored_numbers(name):
    layer = make_layer(name, random(96, 128), random(96))
    before = [tensor.clone() for tensor in layer.tensors]
    layer.bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    for tensor, old in zip(layer.tensors, before, strict=True):
        assert tensor.dtype == old.dtype
        assert torch.equal(tensor.view(torch.uint8), old.view(torch.uint8))
    assert layer(random(3, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_goes_through_a_state_dict():
    layer, other = (make_layer("int4_svd", random(96, 128, seed=seed), random(96, seed=seed)) for seed in (0, 1))
    assert isinstance(other, FrozenLinear)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(random(3, 128)), layer(random(3, 128)))

"""Weights of 8 bits that are there transposed as well: the same gradients to the bit, and never those of other weights."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
from wan_train.core.adapters.products import use_products
from wan_train.core.kernels import linears
from wan_train.core.kernels.apply import use_kernels
from wan_train.core.memory.products import part_of
from wan_train.core.plan.plan import transposed_bytes
from wan_train.core.train import kernel_mode
from wan_train.core.wan.model import call_block
from wan_train.tests.core.kernels import reference
from wan_train.tests.core.kernels.test_blocks import CLIP_CONFIG, CONFIG, DEVICE, gradients, inputs, make_block

NEED_IT = 8  # linear layers of a block whose input has a gradient


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    if DEVICE.type == "cpu":
        reference.put_in_place(monkeypatch)


@pytest.fixture
def made(monkeypatch):
    """Shapes of the weights that are transposed."""
    found = []
    transpose = linears.transposed
    monkeypatch.setattr(
        linears, "transposed", lambda weight, out: found.append(weight.shape) or transpose(weight, out=out)
    )
    return found


def put_on(model, *, transposed):
    model = copy.deepcopy(model)
    kernel_mode.put_on(model, transposed=transposed)
    return model


def products(model):
    layers = [layer for layer in model.blocks.modules() if "_product_part" in vars(layer)]
    return list({id(p): p for p in (part_of(layer).product for layer in layers)}.values())


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG], ids=["t2v", "i2v"])
@pytest.mark.parametrize("options", [{}, {"kind": "dora"}, {"targets": ("ffn",)}], ids=str)
def test_gradients_are_the_same_to_the_bit(config, options, made):
    model, given = make_block(config, "fp8_compute", **options), inputs(config)
    of_contexts = 0  # DoRA's graph goes through the base of the text's layers, too, and through that of the image's
    if options.get("kind"):
        of_contexts = 2 if config is CONFIG else 4
    expected = gradients(put_on(model, transposed=False), call_block, *given)
    assert len(made) == NEED_IT + of_contexts
    made.clear()
    kept = put_on(model, transposed=True)
    assert len(made) == NEED_IT  # at once: a step finds them there
    made.clear()
    for _ in range(2):
        assert equal(gradients(kept, call_block, *given), expected)
    assert len(made) == 2 * of_contexts


@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG], ids=["t2v", "i2v"])
def test_what_a_plan_counts_for_them(config):
    kept = [product._kept for product in products(put_on(make_block(config, "fp8_compute"), transposed=True))]
    held = [each._memory for each in kept if each is not None]
    assert len(held) == NEED_IT
    assert sum(memory.nbytes for memory in held) == transposed_bytes(config)
    assert {memory.untyped_storage().nbytes() for memory in held} == {transposed_bytes(config)}  # in one piece


def test_blocks_of_another_precision_hold_none():
    model = put_on(make_block(precision="fp8"), transposed=True)
    assert not any(isinstance(product, linears.Fp8Product) for product in products(model))


def write_over(tensor, new):
    tensor.copy_(new)


def bind(tensor, new):
    """As weights come back that had left the device, or those of another base."""
    tensor.data = new


@pytest.mark.parametrize("change", [write_over, bind])
def test_weights_that_change(change):
    model, other, given = make_block(precision="fp8_compute"), make_block(precision="fp8_compute"), inputs()
    for weight in weights_of(other):
        weight.copy_(weight.float().flip(0).to(weight.dtype))
    kept = put_on(model, transposed=True)
    before = gradients(kept, call_block, *given)
    with torch.no_grad():
        for weight, new in zip(weights_of(kept), weights_of(other), strict=True):
            change(weight, new.clone())
    found = gradients(kept, call_block, *given)
    assert not equal(found, before)
    assert equal(found, gradients(put_on(other, transposed=False), call_block, *given))


def weights_of(model):
    return [tensor for name, tensor in model.blocks.named_buffers() if name.endswith("weight")]


def test_a_copied_model_holds_none_and_has_the_gradients():
    kept, given = put_on(make_block(precision="fp8_compute"), transposed=True), inputs()
    expected = gradients(kept, call_block, *given)
    copied = copy.deepcopy(kept)
    assert all(product._kept is None for product in products(copied) if isinstance(product, linears.Fp8Product))
    for weight in weights_of(kept):
        weight.view(torch.uint8).zero_()
    assert equal(gradients(copied, call_block, *given), expected)


def test_nothing_is_left_of_them_when_the_kernels_are_off():
    model = put_on(make_block(precision="fp8_compute"), transposed=True)
    kernel_mode.take_off(model)
    assert products(model) == []
    ops, remaker = use_kernels(model)
    use_products(model, partial(linears.make_product, ops=ops), remaker.is_unread)
    assert all(product._kept is None for product in products(model) if isinstance(product, linears.Fp8Product))


def test_of_a_larger_model():
    assert transposed_bytes(replace(CONFIG, dim=5120, ffn_dim=13824)) == 6 * 5120**2 + 2 * 5120 * 13824

"""Whole models in every format: gradients, size, compilation, and what a LoRA learns on them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from wan_train.core.adapters.setup import adapter_state, add_adapter, load_adapter
from wan_train.core.memory.checkpointing import with_checkpointing
from wan_train.core.memory.frozen_linear import FrozenLinear
from wan_train.core.memory.precisions.fp8_compute import find_kernel
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.layers import WanBlock, compute_dtype, rope_table
from wan_train.tests.core.memory.precisions.helpers import (
    FORMATS,
    SIZE,
    STORED,
    dequantized,
    load,
    make_layer,
    random,
    write_model,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("precision"))


def inputs(frames=2, size=4):
    return random(1, 16, frames, size, size), torch.tensor([400.0]), random(1, 5, SIZE.text_dim, seed=1)


def lora_gradients(model):
    parameters = add_adapter(model, AdapterOptions(rank=2), seed=3)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_B" in name:
                parameter.fill_(0.01)
    functional.mse_loss(model(*inputs()), random(1, 16, 2, 4, 4, seed=2)).backward()
    return {name: parameter.grad for name, parameter in parameters}


@pytest.mark.parametrize("name", STORED)
def test_a_lora_gets_the_gradients_of_the_dequantized_model(path, name):
    model = load(path, name)
    assert sum(isinstance(module, FrozenLinear) for module in model.modules()) == 20
    expected = lora_gradients(dequantized(path, model))
    checkpointed = load(path, name)
    checkpointed.run_block = with_checkpointing(checkpointed.run_block)
    for gradients in (lora_gradients(model), lora_gradients(checkpointed)):
        assert gradients.keys() == expected.keys()
        assert len(gradients) == 40
        for key, gradient in gradients.items():
            assert gradient.dtype == torch.float32
            assert gradient.abs().max() > 0
            assert torch.equal(gradient, expected[key]), key


@pytest.mark.skipif(find_kernel(torch.device("cpu")) is None, reason="this PyTorch multiplies no fp8 on a CPU")
def test_fp8_products_change_the_gradients_by_their_rounding(path):
    model = load(path, "fp8_compute")
    expected = torch.cat([gradient.flatten() for gradient in lora_gradients(dequantized(path, model)).values()])
    gradients = torch.cat([gradient.flatten() for gradient in lora_gradients(model).values()])
    assert 1e-3 < (gradients - expected).norm() / expected.norm() < 0.1
    assert functional.cosine_similarity(gradients, expected, dim=0) > 0.995


def block_bytes(model):
    return sum(tensor.numel() * tensor.element_size() for tensor in model.blocks.state_dict().values())


def test_models_are_smaller_and_the_rest_stays_in_high_precision(path):
    plain = block_bytes(load(path))
    # Of fp32's 4 bytes: 1 or 1/2, and what every block keeps in fp32; at this width scales and factors weigh more.
    for name, share in [("fp8", 0.31), ("int8", 0.31), ("nf4 single", 0.21), ("int4_svd", 0.30)]:
        model = load(path, name)
        assert block_bytes(model) < share * plain
        for key in ("patch_embedding", "head.head", "text_embedding.0", "blocks.0.norm3", "blocks.1.self_attn.norm_q"):
            assert model.get_submodule(key).weight.dtype == torch.float32
        assert compute_dtype(model.get_submodule("blocks.0.ffn.0")) == torch.float32


def test_a_block_with_every_format_compiles_without_a_break():
    block = WanBlock(64, 128, 2, 1e-6).requires_grad_(False)
    names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    for index, name in enumerate(names):
        plain = block.get_submodule(name)
        weight = random(*plain.weight.shape, seed=index) / plain.in_features**0.5
        block.set_submodule(name, make_layer(FORMATS[index % len(FORMATS)], weight, plain.bias.data))
    context = random(1, 7, 64)  # needs no gradient, unlike x

    def run(block):
        x = random(1, 24, 64, seed=1).requires_grad_()
        y = block(x, 0.1 * random(1, 1, 6, 64), rope_table((2, 3, 4), 32), context)
        y.square().mean().backward()
        return y.detach(), x.grad

    expected = run(block)
    compiled = run(torch.compile(block, fullgraph=True, backend="aot_eager"))
    for result, reference in zip(compiled, expected, strict=True):
        assert torch.allclose(result, reference, rtol=1e-5, atol=1e-6)


OPTIONS = AdapterOptions(rank=4, alpha=8.0, targets=("ffn",))
STEPS = 200


def loss_of(model, step):
    """On one of two samples; noise and time are functions of the step."""
    latents = random(1, 16, 1, 4, 4, seed=step % 2)
    noise = random(1, 16, 1, 4, 4, seed=1000 + step)
    sigma = (step % 10 + 0.5) / 10
    prediction = model((1 - sigma) * latents + sigma * noise, torch.tensor([1000 * sigma]), random(1, 5, SIZE.text_dim))
    return functional.mse_loss(prediction, noise - latents)


def train(model):
    """Losses of a LoRA that learns two samples, averaged over 20 steps."""
    parameters = [parameter for _, parameter in add_adapter(model, OPTIONS, seed=0)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, foreach=True)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).view(-1, 20).mean(dim=1)


def evaluate(model):
    with torch.no_grad():
        return torch.stack([loss_of(model, step) for step in range(1000, 1020)]).mean()


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The model's file, and what a LoRA of its own does: its losses, and the model's without and with it."""
    path = write_model(tmp_path_factory.mktemp("taught"), size=replace(SIZE, num_layers=1))
    plain = load(path)
    before = evaluate(plain)
    losses = train(plain)
    return path, losses, before, evaluate(plain)


@pytest.mark.parametrize("name", ["fp8", "fp8_compute", "int8", "nf4 single", "int4_svd"])
def test_a_lora_learns_as_on_the_plain_model_and_helps_that_one(taught, name):
    """200 steps: the losses lie over each other, and the plain model gains nine tenths of what its own LoRA gives it."""
    path, expected, before, after_on_its_own = taught
    assert expected[-1] < 0.9 * expected[0]
    assert after_on_its_own < 0.9 * before
    quantized = load(path, name)
    losses = train(quantized)
    assert ((losses - expected).abs() < 0.03 * expected).all()
    plain = load(path)
    add_adapter(plain, OPTIONS, seed=0)
    load_adapter(plain, adapter_state(quantized))
    after = evaluate(plain)
    assert after < before - 0.9 * (before - after_on_its_own)

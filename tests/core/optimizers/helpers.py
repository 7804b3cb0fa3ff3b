"""Small parameters with gradients that are a function of the step, and the independent calculations' double precision."""

import pytest
import torch
from wan_train.core.adapters.peft_hooks import import_adapters
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.optimizers import build_optimizer, update_if

GOOD = torch.tensor(True)
SHAPES = ((4, 96), (96, 4))  # of a LoRA's A and B


def need(*packages):
    """Skip where one of them is missing. peft first: it can't be imported as runs do once transformers is."""
    if "transformers" in packages:
        import_adapters()
    for package in packages:
        pytest.importorskip(package)


def make_parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step, shapes=SHAPES):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def train(options: OptimizerOptions, steps=20, shapes=SHAPES):
    """Parameters and optimizer after so many updates by the pack's own way."""
    parameters = make_parameters(shapes)
    optimizer = build_optimizer(parameters, options)
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step, shapes), strict=True):
            parameter.grad = gradient
        update_if(GOOD, optimizer)
    return parameters, optimizer


def expect(rule, steps=20, shapes=SHAPES):
    """float64 weights after `rule(weight, state, gradient, step)`, which returns the new weight; steps count from 1."""
    weights = [parameter.detach().double() for parameter in make_parameters(shapes)]
    states = [{} for _ in weights]
    for step in range(steps):
        for index, gradient in enumerate(gradients(step, shapes)):
            weights[index] = rule(weights[index], states[index], gradient.double(), step + 1)
    return weights


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach().double(), b.double(), rtol=rtol, atol=atol)

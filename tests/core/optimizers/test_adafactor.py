"""Adafactor: the paper's numbers at a given learning rate, and a B that is 0 at the start moves as A does."""

import torch
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.optimizers import build_optimizer, update_if
from wan_train.tests.core.optimizers.helpers import GOOD, assert_close, expect, make_parameters, need, train

OPTIONS = OptimizerOptions(name="adafactor", learning_rate=1e-2, weight_decay=0.1)
need("transformers")


def rule(weight, state, gradient, step, *, threshold=1.0, decay=-0.8):
    """Algorithm 4 of the paper with a step size that is given, and decoupled weight decay."""
    beta2 = 1 - step**decay
    square = gradient.square() + 1e-30
    state["row"] = beta2 * state.get("row", 0.0) + (1 - beta2) * square.mean(1)
    state["column"] = beta2 * state.get("column", 0.0) + (1 - beta2) * square.mean(0)
    variance = state["row"][:, None] * state["column"] / state["row"].mean()
    update = gradient / variance.sqrt()
    update = update / max(1.0, update.square().mean().sqrt().item() / threshold)
    return weight - 1e-2 * 0.1 * weight - 1e-2 * update


def test_it_is_the_papers_algorithm():
    parameters, _ = train(OPTIONS)
    assert_close(parameters, expect(rule))


def test_its_arguments_reach_it():
    options = OptimizerOptions(
        name="adafactor", learning_rate=1e-2, weight_decay=0.1, args="clip_threshold=0.5, decay_rate=-0.5"
    )
    parameters, _ = train(options)
    assert_close(parameters, expect(lambda *a: rule(*a, threshold=0.5, decay=-0.5)))


def test_what_is_zero_moves_as_fast_as_what_is_not():
    parameter = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = build_optimizer([parameter], OPTIONS)
    parameter.grad = torch.ones(8, 4)
    update_if(GOOD, optimizer)
    torch.testing.assert_close(parameter.detach(), torch.full((8, 4), -1e-2))


def test_it_keeps_a_number_for_each_row_and_column():
    _, optimizer = train(OPTIONS, steps=1)
    kept = [
        sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor) and value.ndim)
        for state in optimizer.state.values()
    ]
    assert kept == [sum(parameter.shape) for parameter in make_parameters()]

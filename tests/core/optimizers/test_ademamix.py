"""AdEMAMix: the paper's numbers, in fp32 and near them in 8 bits."""

import math

import pytest
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.tests.core.optimizers.helpers import assert_close, expect, train

pytest.importorskip("bitsandbytes")
LARGE = ((64, 128), (128, 64))  # smaller ones bitsandbytes keeps in fp32


def rule(weight, state, gradient, step, *, alpha=5.0, beta3=0.9999, rise=0):
    """Algorithm 1 of the paper, with its schedules of alpha and beta3 where `rise` says over how many steps."""
    if rise:
        share = step / rise
        logs = math.log(0.9), math.log(beta3)
        beta3 = min(math.exp(logs[0] * logs[1] / ((1 - share) * logs[1] + share * logs[0])), beta3)
        alpha = min(share * alpha, alpha)
    state["fast"] = 0.9 * state.get("fast", 0.0) + 0.1 * gradient
    state["slow"] = beta3 * state.get("slow", 0.0) + (1 - beta3) * gradient
    state["square"] = 0.999 * state.get("square", 0.0) + 0.001 * gradient.square()
    mean = state["fast"] / (1 - 0.9**step) + alpha * state["slow"]
    update = mean / ((state["square"] / (1 - 0.999**step)).sqrt() + 1e-8)
    return weight - 1e-3 * (update + 0.1 * weight)


def options_of(name, args=""):
    return OptimizerOptions(name=name, learning_rate=1e-3, weight_decay=0.1, args=args)


def test_it_is_the_papers_algorithm():
    parameters, _ = train(options_of("ademamix"))
    assert_close(parameters, expect(rule), rtol=1e-4, atol=1e-5)


def test_its_arguments_reach_it():
    parameters, _ = train(options_of("ademamix", "alpha=2, beta3=0.99, t_alpha=10, t_beta3=10"))
    assert_close(parameters, expect(lambda *a: rule(*a, alpha=2.0, beta3=0.99, rise=10)), rtol=1e-4, atol=1e-5)


def test_in_8_bits_it_is_near():
    """By less than a fifth of what it moved."""
    ours, optimizer = train(options_of("ademamix8bit"), shapes=LARGE)
    exact, start = expect(rule, shapes=LARGE), expect(lambda weight, *_: weight, shapes=LARGE)
    for a, b, before in zip(ours, exact, start, strict=True):
        assert (a.detach() - b).norm() < 0.2 * (b - before).norm()
    assert {state["state1"].dtype.itemsize for state in optimizer.state.values()} == {1}

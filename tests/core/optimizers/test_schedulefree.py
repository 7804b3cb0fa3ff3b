"""Schedule-free AdamW: the paper's numbers, what is shown is its mean, and what is trained comes back to the bit."""

import contextlib
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.average import averaged_by
from wan_train.core.train.start import check_optimizer
from wan_train.tests.core.optimizers.helpers import assert_close, expect, train

pytest.importorskip("schedulefree")
OPTIONS = OptimizerOptions(name="schedulefree", learning_rate=1e-2, weight_decay=0.1)


def rule(y, state, gradient, step, *, r=0.0):
    """Algorithm 1 of the paper: z moves, x is the mean of all z, and y between them is where the gradient was taken."""
    beta1, beta2, rate = 0.9, 0.999, 1e-2
    z, x = state.get("z", y), state.get("x", y)
    state["square"] = beta2 * state.get("square", 0.0) + (1 - beta2) * gradient.square()
    root = (state["square"] / (1 - beta2**step)).sqrt() + 1e-8
    z = z - rate * (gradient / root + 0.1 * y)
    weight = step**r * rate**2
    state["sum"] = state.get("sum", 0.0) + weight
    x = x + weight / state["sum"] * (z - x)
    state["z"], state["x"] = z, x
    return (1 - beta1) * z + beta1 * x


@pytest.mark.parametrize(("args", "r"), [("", 0.0), ("r=2", 2.0)])
def test_it_is_the_papers_algorithm(args, r):
    parameters, _ = train(replace(OPTIONS, args=args))
    assert_close(parameters, expect(lambda *a: rule(*a, r=r)), rtol=1e-4, atol=1e-5)


def test_what_is_shown_is_the_mean_and_the_weights_come_back_to_the_bit():
    parameters, optimizer = train(OPTIONS)
    means: list = []

    def keeping(y, state, gradient, step):
        found = rule(y, state, gradient, step)
        if step == 20:
            means.append(state["x"])
        return found

    expect(keeping)
    before = [parameter.detach().clone() for parameter in parameters]
    with averaged_by(optimizer, parameters):
        assert_close(parameters, means, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, parameters, before))
    assert optimizer.param_groups[0]["train_mode"]
    with contextlib.suppress(KeyError), averaged_by(optimizer, parameters):
        raise KeyError  # as of a preview that was broken off
    assert all(map(torch.equal, parameters, before))


def test_two_averages_are_refused():
    with pytest.raises(ConfigError, match="ema is on, but the optimizer schedulefree averages the weights by itself"):
        check_optimizer(OPTIONS, EmaOptions(use=True))
    check_optimizer(OPTIONS, EmaOptions())


def test_a_mean_without_a_mix_is_refused():
    with pytest.raises(ConfigError, match="needs a beta1 above 0"):
        check_optimizer(replace(OPTIONS, beta1=0.0), EmaOptions())

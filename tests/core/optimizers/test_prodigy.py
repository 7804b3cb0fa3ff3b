"""Prodigy: the paper's numbers, its estimate survives a resume, and what it can't be used with."""

import copy
from dataclasses import replace

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.build import job_warnings
from wan_train.core.train.optimizers import build_optimizer, check_optimizer_state, load_optimizer, update_if
from wan_train.core.train.start import check_optimizer
from wan_train.tests.core.optimizers import helpers
from wan_train.tests.core.optimizers.helpers import GOOD, assert_close, make_parameters

pytest.importorskip("prodigyopt")
OPTIONS = OptimizerOptions(name="prodigy", learning_rate=1.0, weight_decay=0.1)
METHOD = OPTIMIZERS.get("prodigy")


def gradients(step):
    """That agree on a direction, so that the estimate grows."""
    return [gradient + 1.0 for gradient in helpers.gradients(step)]


def advance(parameters, optimizer, steps):
    for step in steps:
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        update_if(GOOD, optimizer)


def train(options, steps):
    parameters = make_parameters()
    optimizer = build_optimizer(parameters, options)
    advance(parameters, optimizer, range(steps))
    return parameters, optimizer


def expected(steps, *, d_coef=1.0, d0=1e-6):
    """Algorithm 4 of the paper (Prodigy in Adam's form), all parameters as one vector; weights and d."""
    x = torch.cat([parameter.detach().double().flatten() for parameter in make_parameters()])
    x0, d, r = x.clone(), d0, 0.0
    m, v, s = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    beta1, beta2 = 0.9, 0.999
    for step in range(steps):
        g = torch.cat([gradient.double().flatten() for gradient in gradients(step)])
        root = beta2**0.5
        r = root * r + (d / d0) * d * torch.dot(g, x0 - x).item()  # (1 - root) cancels in r / s
        s = root * s + (d / d0) * d * g
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d * d * g.square()
        new = max(d, d_coef * r / s.abs().sum().item())
        x = x - d * 0.1 * x - d * m / (v.sqrt() + new * 1e-8)
        d = new
    return x, d


@pytest.mark.parametrize(("args", "given"), [("", {}), ("d_coef=2, d0=1e-3", {"d_coef": 2.0, "d0": 1e-3})])
def test_it_is_the_papers_algorithm(args, given):
    parameters, optimizer = train(replace(OPTIONS, args=args), steps=8)
    weights, d = expected(8, **given)
    assert d > 2 * given.get("d0", 1e-6)
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-2)  # x0 - x of 1e-6 has few digits in fp32
    assert_close([torch.cat([parameter.flatten() for parameter in parameters])], [weights], rtol=1e-4, atol=1e-5)


def test_its_estimate_is_found_again():
    """Which lies in the optimizer's groups, beside the constants."""
    parameters, optimizer = train(OPTIONS, steps=10)
    state = copy.deepcopy(optimizer.state_dict())
    check_optimizer_state(METHOD, optimizer, state)
    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = build_optimizer(others, OPTIONS)
    load_optimizer(other, state, group_state=METHOD.group_state)
    assert other.param_groups[0]["d"] > other.param_groups[0]["d0"]
    advance(parameters, optimizer, range(10, 15))
    advance(others, other, range(10, 15))
    assert all(map(torch.equal, parameters, others))
    state["param_groups"][0]["d"] = float("nan")
    with pytest.raises(ValueError, match="the optimizer's d is nan"):
        check_optimizer_state(METHOD, optimizer, state)


def test_a_learning_rate_of_another_optimizer_is_told(job):
    assert job_warnings(replace(job, optimizer=OPTIONS)) == []
    (sentence,) = job_warnings(replace(job, optimizer=replace(OPTIONS, learning_rate=1e-4)))
    assert "prodigy finds the learning rate itself" in sentence
    assert "0.0001" in sentence


def test_lora_plus_is_refused():
    with pytest.raises(
        ConfigError, match="lora_plus_ratio is 16, but the optimizer prodigy has one learning rate for all"
    ):
        check_optimizer(replace(OPTIONS, lora_plus=16.0), EmaOptions())

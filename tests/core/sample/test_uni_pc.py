from itertools import pairwise

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.sample.sampler import SampleOptions, initial_noise, sample, schedule, switch_step
from wan_train.core.sample.samplers.uni_pc import LAST_SIGMA, UniPC

SHAPE = (2, 16, 2, 4, 6)
CONTEXT = torch.zeros(1, 8, 4)


def all_steps(sigmas, velocity, start):
    """What UniPC makes of `start`, with `velocity` as the model."""
    solver, latents = UniPC(sigmas.tolist()), start
    for sigma in sigmas[:-1]:
        latents = solver.step(latents, velocity(latents, sigma))
    return latents


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20])
def test_a_straight_path_is_followed_to_its_end(steps):
    """Any number of steps ends at z, but for the noise of the last sigma, which the host leaves in too."""
    noise, target = initial_noise(SHAPE, 3), 0.7
    options = SampleOptions(steps=steps, sampler="uni_pc")
    latents = sample(
        lambda x, t, _: (x - target) / (t.view(-1, 1, 1, 1, 1) / 1000), None, noise, CONTEXT, None, options
    )
    torch.testing.assert_close(latents, target + LAST_SIGMA / (1 - LAST_SIGMA) * noise, atol=1e-5, rtol=0)
    assert latents.dtype == torch.float32


def curved(latents, sigma):
    """dx/dsigma = -x cos(sigma) has the solution exp(-sin(sigma))."""
    return -latents * torch.cos(sigma)


def errors(make):
    """The error at sigma 0.2 of what a solver makes, in 8, 16, 32 and 64 steps from sigma 1."""
    exact = torch.exp(-torch.sin(torch.tensor(0.2, dtype=torch.float64)))
    found = []
    for steps in (8, 16, 32, 64):
        sigmas = torch.linspace(1.0, 0.2, steps + 1, dtype=torch.float64)
        found.append(abs(make(sigmas, curved, torch.exp(-torch.sin(sigmas[:1]))) - exact).item())
    return found


def test_the_error_falls_with_the_square_of_the_step_and_more():
    def euler(sigmas, velocity, start):
        for here, there in pairwise(sigmas):
            start = start + (there - here) * velocity(start, here)
        return start

    slow, fast = errors(euler), errors(all_steps)
    assert all(1.8 < one / two < 2.2 for one, two in pairwise(slow))
    assert all(one / two > 3.4 for one, two in pairwise(fast))
    assert slow[0] / fast[0] > 9
    assert slow[-1] / fast[-1] > 60


def test_the_model_is_asked_once_a_step_at_the_schedules_sigmas():
    timesteps, calls = [], []

    def model(latents, t, _):
        timesteps.append(t[0].item())
        return latents.sin()

    options = SampleOptions(steps=9, shift=3.0, sampler="uni_pc")
    sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, options, lambda *call: calls.append(call))
    assert timesteps == pytest.approx((1000 * schedule(options)[:-1]).tolist())
    assert calls == [(step, 9) for step in range(1, 10)]


def test_each_expert_starts_without_the_others_history():
    options = SampleOptions(steps=8, shift=1.0, boundary=0.5, sampler="uni_pc")
    sigmas = schedule(options)

    def high(latents, t, _):
        return latents.tanh() + 1e-3 * t.view(-1, 1, 1, 1, 1)

    def low(latents, t, _):
        return latents.cos()

    noise = initial_noise(SHAPE, 3)
    switch = switch_step(sigmas, 0.5)
    assert switch == 5
    middle = all_steps(sigmas[: switch + 1], lambda x, s: x.tanh() + s, noise)
    expected = all_steps(sigmas[switch:], lambda x, _: x.cos(), middle)
    torch.testing.assert_close(sample(high, low, noise, CONTEXT, None, options), expected, atol=1e-5, rtol=0)
    whole = all_steps(sigmas, lambda x, s: x.tanh() + s if s >= 0.5 else x.cos(), noise)
    assert (whole - expected).abs().max() > 1e-3


def test_the_history_is_not_longer_than_the_order_needs():
    solver = UniPC(torch.linspace(1, 0, 31).tolist())
    latents = initial_noise(SHAPE, 3)
    for _ in range(30):
        latents = solver.step(latents, latents.sin())
        assert len(solver._data) <= 3


def test_an_extreme_shift_is_refused_before_the_model_is_asked():
    def model(latents, t, _):
        raise AssertionError("asked")

    options = SampleOptions(steps=100, shift=1e8, sampler="uni_pc")
    with pytest.raises(
        ConfigError, match="uni_pc cannot step from the sigma 1 to 1: fewer steps, or a shift nearer to 1"
    ):
        sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, options)

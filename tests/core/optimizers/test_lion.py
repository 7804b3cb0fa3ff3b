"""Lion: the paper's numbers, bitsandbytes' too, and a run with it that goes on after a stop."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.optimizers import lion
from wan_train.core.optimizers.lion import Lion
from wan_train.core.plan.sizes import Trained, can_offload, state_bytes
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.train.optimizers import build_optimizer, update_if
from wan_train.tests.core.train.helpers import make_trainer

OPTIONS = OptimizerOptions(name="lion", learning_rate=1e-2, weight_decay=0.1, beta2=0.99)
GOOD = torch.tensor(True)


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 80), (5,))]


def gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in make_parameters()]


def advance(parameters, act, steps=20):
    for seed in range(steps):
        for parameter, gradient in zip(parameters, gradients(seed), strict=True):
            parameter.grad = gradient
        act()


def test_it_is_the_papers_algorithm():
    """Algorithm 2 of the paper, number by number."""
    ours, theirs = make_parameters(), [p.detach().clone() for p in make_parameters()]
    optimizer = build_optimizer(ours, OPTIONS)
    advance(ours, lambda: update_if(GOOD, optimizer))
    moments = [torch.zeros_like(p) for p in theirs]
    for seed in range(20):
        for w, m, g in zip(theirs, moments, gradients(seed), strict=True):
            update = torch.sign(0.9 * m + 0.1 * g)
            w -= 1e-2 * (update + 0.1 * w)
            m.mul_(0.99).add_(g, alpha=0.01)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-6)
    for parameter, moment in zip(ours, moments, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], moment, rtol=1e-5, atol=1e-6)


def test_it_is_that_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours, theirs = make_parameters(), make_parameters()
    optimizer = build_optimizer(ours, OPTIONS)
    other = bitsandbytes.optim.Lion(theirs, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, optim_bits=32)
    advance(ours, lambda: update_if(GOOD, optimizer))
    advance(theirs, other.step)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_stay_and_have_no_state():
    parameters = make_parameters()
    optimizer = build_optimizer(parameters, OPTIONS)
    parameters[0].grad = gradients(0)[0]
    optimizer.step()
    assert torch.equal(parameters[1], make_parameters()[1])
    assert not torch.equal(parameters[0], make_parameters()[0])
    assert set(optimizer.state) == {parameters[0]}


def test_memory_that_runs_out_leaves_weights_and_momentum_as_they_were(monkeypatch):
    parameters = make_parameters()
    optimizer = build_optimizer(parameters, OPTIONS)
    advance(parameters, lambda: update_if(GOOD, optimizer), steps=2)
    weights = [p.detach().clone() for p in parameters]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in parameters]

    def fail(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lion, "foreach_lerp", fail)
    with pytest.raises(torch.OutOfMemoryError):
        advance(parameters, lambda: update_if(GOOD, optimizer), steps=1)
    assert all(map(torch.equal, parameters, weights))
    assert all(torch.equal(optimizer.state[p]["exp_avg"], m) for p, m in zip(parameters, moments, strict=True))


def test_the_planner_counts_one_moment_that_stays_on_the_gpu():
    trained = Trained(optimizer="lion")
    assert state_bytes(trained) == 4
    assert not can_offload(trained)


def test_a_run_with_it_learns(job):
    options = OptimizerOptions(name="lion", learning_rate=3e-3, beta2=0.99)
    loop = replace(job.loop, steps=30, caption_dropout=0.0)
    data = replace(job.data, samples=job.data.samples[:1])
    trainer = make_trainer(replace(job, optimizer=options, loop=loop, data=data))
    assert isinstance(trainer.optimizer, Lion)
    batch, sigmas = trainer.batches.get(0), torch.tensor([0.5])
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    before = trainer.loss_at(batch, noise, sigmas).item()
    trainer.train()
    assert trainer.loss_at(batch, noise, sigmas).item() < 0.97 * before

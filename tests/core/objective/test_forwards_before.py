"""Rollouts and contrastive guidance: by hand, drawn by seed and step, in training alone, and what the planner is told."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from wan_train.core.objective.contrastive import guided
from wan_train.core.objective.objective import FlowMatching, objective_of
from wan_train.core.objective.rollout import chance_at, draw_rollouts, num_steps
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.settings.rollout import RolloutOptions
from wan_train.core.train.batches import make_draws
from wan_train.core.train.validation import validation_loss
from wan_train.tests.core.objective.test_objective import observed_passes, trained
from wan_train.tests.core.objective.test_regularizers import stepped
from wan_train.tests.core.train.helpers import SIZE, make_sample, make_trainer


@pytest.fixture
def job(job, tmp_path):
    """Batches of two samples; the empty caption is not zero."""
    save_file({"context": torch.full((2, SIZE.text_dim), 0.3)}, job.data.empty_text_path)
    samples = tuple(make_sample(tmp_path, name) for name in "ab")
    return replace(
        job,
        data=replace(job.data, samples=samples),
        loop=replace(job.loop, batch_size=2, caption_dropout=0.0),
        optimizer=replace(job.optimizer, max_grad_norm=0.0),
    )


def contrastive(job, **options):
    return replace(job, loss=LossOptions(contrastive_guidance=3.5, **options))


def rolling(job, **options):
    return replace(job, rollout=RolloutOptions(**{"steps": 4, **options}))


def plain_forward(trainer, job):
    batch = trainer.batches.get(0)
    draws = make_draws(job, batch, 0)
    sigmas = draws.sigmas.view(-1, 1, 1, 1, 1)
    return batch, draws, (1 - sigmas) * batch.latents + sigmas * draws.noise


@pytest.mark.parametrize("schedule", ["constant", "sigma"])
@pytest.mark.parametrize("zero", [False, True])
def test_contrastive_guidance_by_hand(job, schedule, zero):
    """As SDTrainer.py (27a03a9, lines 730-778) has it."""
    job = contrastive(job, contrastive_schedule=schedule, contrastive_cfg_zero=zero)
    trainer = trained(make_trainer(job))
    batch, draws, noisy = plain_forward(trainer, job)
    blank = torch.zeros_like(batch.context)
    blank[:, :2] = 0.3
    with torch.no_grad():
        unconditional = trainer.model(noisy, draws.sigmas * 1000, blank)
    target = draws.noise - batch.latents
    if zero:
        flat, negative = target.view(2, -1), unconditional.view(2, -1)
        alpha = (flat * negative).sum(1, keepdim=True) / ((negative**2).sum(1, keepdim=True) + 1e-8)
        unconditional = unconditional * alpha.view(2, 1, 1, 1, 1)
    scale = 3.5 if schedule == "constant" else 1.0 + 2.5 * draws.sigmas.view(2, 1, 1, 1, 1)
    target = unconditional + scale * (target - unconditional)
    loss = F.mse_loss(trainer.model(noisy, draws.sigmas * 1000, batch.context), target)
    expected = torch.autograd.grad(loss, trainer.parameters)
    report, found = stepped(trainer)
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_factor_of_one_changes_nothing():
    target, unguided = torch.randn(2, 1, 1, 2, 2), torch.randn(2, 1, 1, 2, 2)
    found = guided(target, unguided, torch.rand(2), LossOptions(contrastive_guidance=1.0))
    torch.testing.assert_close(found, target)


def test_a_rollout_by_hand(job):
    """Euler's steps of 1/999 by the model as it is, sample by sample; then the loss where they lead, at the level i."""
    job = rolling(job, direction=2.0)
    trainer = trained(make_trainer(job))
    batch, draws, noisy = plain_forward(trainer, job)
    assert any(begin > end for begin, end in draws.rollouts)
    rows, levels = [], []
    for number, (begin, end) in enumerate(draws.rollouts):
        latents, noise, text = (each[number : number + 1] for each in (batch.latents, draws.noise, batch.context))
        x = (1 - begin / 999) * latents + begin / 999 * noise
        with torch.no_grad():
            for level in range(begin, end, -1):
                x = x - trainer.model(x, torch.tensor([float(level)]), text) / 999
        rows.append(x if begin > end else noisy[number : number + 1])
        levels.append(float(end) if begin > end else draws.sigmas[number].item() * 1000)
    x = torch.cat(rows)
    pred = trainer.model(x, torch.tensor(levels), batch.context)
    away, flat = (x - batch.latents).flatten(1), pred.flatten(1)
    direction = (F.normalize(flat) - F.normalize(away)).square().sum(1).mean()
    loss = F.mse_loss(pred, draws.noise - batch.latents) + 2.0 * direction
    expected = torch.autograd.grad(loss, trainer.parameters)
    report, found = stepped(trainer)
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.terms["direction"] == pytest.approx(direction.item(), rel=1e-4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_rollouts_are_drawn_by_seed_and_step_within_the_stage(job):
    job = rolling(job, steps=50)
    sigmas = torch.linspace(0.0, 0.87, 100)
    one, again, later = (draw_rollouts(job, sigmas, index=index, first_draw=index * 100) for index in (0, 0, 1))
    assert one == again != later
    assert [end for _, end in one] == [int(sigma * 1000) for sigma in sigmas.tolist()]
    assert max(begin for begin, _ in one) <= 874  # the low expert's window ends at 0.875
    assert len({begin - end for begin, end in one[:50]}) > 20
    never = replace(job, rollout=replace(job.rollout, probability=0.0))
    assert all(begin == end for begin, end in draw_rollouts(never, sigmas, index=0, first_draw=0))
    assert draw_rollouts(replace(job, rollout=RolloutOptions()), sigmas, index=0, first_draw=0) == ()


def test_the_laws_of_steps_and_the_ramp():
    means = {}
    for strategy in ("uniform", "biased_early", "biased_late"):
        options = RolloutOptions(steps=10, strategy=strategy)
        drawn = [num_steps(options, (number + 0.5) / 1000) for number in range(1000)]
        assert (min(drawn), max(drawn)) == (0, 10)
        means[strategy] = sum(drawn) / 1000
    assert means == pytest.approx({"uniform": 5.0, "biased_early": 10 / 3, "biased_late": 20 / 3}, rel=0.02)
    options = RolloutOptions(steps=10, probability=0.5, ramp_steps=10)
    assert [chance_at(options, step) for step in (0, 5, 10, 90)] == [0.0, 0.25, 0.5, 0.5]


@pytest.mark.parametrize("change", [contrastive, rolling])
def test_validation_is_as_without(job, change):
    held_out = replace(job.data.samples[0], held_out=True)
    job = replace(job, data=replace(job.data, samples=(*job.data.samples, held_out)))
    assert validation_loss(trained(make_trainer(job))) == validation_loss(trained(make_trainer(change(job))))


@pytest.mark.parametrize("change", [contrastive, rolling])
def test_with_regularizers_and_a_streamed_base(job, change):
    """Preservation is of the batch as it is trained; gradients do not depend on how the model is held."""
    job = change(replace(job, regularizers=RegularizerOptions(blank_preservation=0.5)))
    plain = stepped(trained(make_trainer(job)))
    memory = MemoryOptions(plan="manual", streamed_blocks=2, offload_inputs=True)
    held = stepped(trained(make_trainer(replace(job, memory=memory))))
    assert held[0].terms == pytest.approx(plain[0].terms, rel=1e-5)
    assert plain[0].terms.keys() == {"flow", "blank_preservation"}
    for one, other in zip(held[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_passes_are_what_a_step_does(job):
    job = contrastive(job)
    assert objective_of(job).passes.order == ("forward without gradient", "forward", "backward")
    assert observed_passes(make_trainer(job)) == objective_of(job).passes
    assert objective_of(rolling(job, steps=10)).passes.num_without == 1 + 5
    assert objective_of(rolling(job, steps=10, probability=0.2)).passes.num_without == 1 + 1
    assert objective_of(replace(job, loss=LossOptions())) == FlowMatching(LossOptions())

"""Objectives of several terms: what is minimised, in which order, with what in memory, and what is told of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from wan_train.core.errors import ConfigError
from wan_train.core.objective.forwards import predict
from wan_train.core.objective.objective import FlowMatching, Sum, Term, objective_of
from wan_train.core.objective.passes import ONE_FORWARD, Passes
from wan_train.core.objective.regularizers import BlankPreservation
from wan_train.core.settings.loss import LossOptions
from wan_train.core.train.batches import make_draws
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.run import LogStep
from wan_train.core.train.validation import validation_loss
from wan_train.tests.core.train.helpers import make_trainer

CPU = torch.device("cpu")
BOTH = Sum(FlowMatching(LossOptions()), BlankPreservation(0.5))


def with_loop(job, **changes):
    return replace(job, loop=replace(job.loop, **changes))


def trained(trainer):
    """As after some steps: a LoRA that does something."""
    with torch.no_grad():
        for number, parameter in enumerate(trainer.parameters):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 10)
    return trainer


def gradients_of(trainer, objective, index=0):
    noisy = trainer.add_noise(trainer.batches.get(index), index)
    total = sum(
        term.weight * term.losses for group in objective.terms(noisy, trainer.forwards) for term in group
    ).mean()
    return total.item(), torch.autograd.grad(total, trainer.parameters)


def test_the_jobs_objective_is_flow_matching_with_its_loss(job):
    assert objective_of(job) == FlowMatching(LossOptions())
    assert objective_of(job).passes == ONE_FORWARD


@pytest.mark.parametrize("changed", [{"kind": "nonsense"}, {"weighting": "nonsense"}], ids=str)
def test_a_loss_that_is_not_known_is_refused(job, changed):
    with pytest.raises(ConfigError, match=r"'nonsense'"):
        make_trainer(replace(job, loss=LossOptions(**changed))).train_step()


def test_term_by_term_is_the_gradient_of_the_sum(job):
    """Accumulated over two batches, with dropout, which is the same in a term whether others come after it or not."""
    job = with_loop(job, gradient_accumulation=2, caption_dropout=0.0)
    job = replace(job, adapter=replace(job.adapter, dropout=0.2), optimizer=replace(job.optimizer, max_grad_norm=0.0))
    trainer = trained(make_trainer(job))
    expected = [gradients_of(trainer, BOTH, index) for index in range(2)]
    trainer.objective, seen = BOTH, []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in trainer.parameters), step())
    report = trainer.train_step().read()
    assert report.loss == pytest.approx(sum(loss for loss, _ in expected) / 2, rel=1e-5)
    for found, *parts in zip(seen, *(gradients for _, gradients in expected), strict=True):
        torch.testing.assert_close(found, sum(parts) / 2, rtol=1e-4, atol=1e-7)


def test_every_term_is_reported_by_its_name_and_validation_looks_at_the_first(job, tmp_path):
    job = replace(job, data=replace(job.data, samples=(*job.data.samples, replace(job.data.samples[0], held_out=True))))
    plain, both = trained(make_trainer(job)), trained(make_trainer(job))
    both.objective = BOTH
    assert validation_loss(plain) == validation_loss(both)
    one, two = plain.train_step().read(), both.train_step().read()
    assert one.terms == {}
    assert two.terms["flow"] == pytest.approx(one.loss, rel=1e-6)
    assert two.terms["blank_preservation"] > 0
    assert two.loss == pytest.approx(two.terms["flow"] + 0.5 * two.terms["blank_preservation"], rel=1e-6)
    events = EventWriter(tmp_path / "events.jsonl")
    for report in (one, two):
        LogStep(events, CPU)(both, report)
    first, second = EventReader(events.path).read()
    assert "terms" not in first
    assert second["terms"] == dict(two.terms)
    json.dumps(second)


def test_the_base_is_the_model_without_its_lora_and_has_no_gradient(job):
    trainer = make_trainer(job)
    noisy = trainer.add_noise(trainer.batches.get(0), 0)
    with torch.no_grad():
        before = predict(trainer.model, noisy)  # B is zero
    trained(trainer)
    base = trainer.forwards.base(noisy)
    pred = trainer.forwards.pred(noisy)
    assert torch.equal(base, before)
    assert not torch.equal(pred, base)
    assert not base.requires_grad
    assert pred.requires_grad
    assert all(parameter.requires_grad for parameter in trainer.parameters)
    teacher = trainer.forwards.teacher(trainer.model, noisy)
    assert torch.equal(teacher, pred)
    assert not teacher.requires_grad


def test_the_lora_is_back_when_a_forward_of_the_base_fails(job):
    trainer = trained(make_trainer(job))
    noisy = trainer.add_noise(trainer.batches.get(0), 0)
    expected = trainer.forwards.pred(noisy)
    with pytest.raises(ConfigError, match="latents must have the shape"):
        trainer.forwards.base(replace(noisy, noisy_latents=noisy.noisy_latents[:, :3]))
    assert torch.equal(trainer.forwards.pred(noisy), expected)


def test_another_caption(job):
    trainer = trained(make_trainer(job))
    noisy = trainer.add_noise(trainer.batches.get(0), 0)
    empty = trainer.forwards.empty_context(noisy)
    assert empty.shape == noisy.context.shape
    assert torch.equal(empty, torch.zeros_like(empty))  # as this job's file has it
    assert not torch.equal(trainer.forwards.pred(noisy, empty), trainer.forwards.pred(noisy))
    assert torch.equal(trainer.forwards.pred(noisy, noisy.context), trainer.forwards.pred(noisy))


class Saved:
    """The most numbers that autograd holds at once, of those with at least `least` of them."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *args):
        self._hooks.__exit__(*args)

    def _pack(self, tensor):
        return Kept(self, tensor)


class Kept:
    def __init__(self, saved, tensor):
        self.saved, self.tensor = saved, tensor
        saved.now += tensor.numel()
        saved.most = max(saved.most, saved.now)

    def __del__(self):
        self.saved.now -= self.tensor.numel()


def test_two_terms_hold_no_more_than_one_at_a_time(job):
    most = {}
    for name, objective in (("one", FlowMatching(LossOptions())), ("two", BOTH), ("at once", AtOnce())):
        trainer = trained(make_trainer(replace(job, memory=replace(job.memory, checkpointing=False))))
        trainer.objective = objective
        with Saved() as saved:
            trainer.train_step()
        assert saved.now == 0
        most[name] = saved.most
    assert most["two"] < 1.1 * most["one"]  # the loss itself saves a little
    assert most["at once"] > 1.8 * most["one"]  # what it would be otherwise, so that the measure can be trusted


class AtOnce:
    """Two forwards for one backward."""

    passes = Passes(("forward", "forward", "backward"))

    def terms(self, noisy, forwards):
        preds = [forwards.pred(noisy), forwards.pred(noisy, forwards.empty_context(noisy))]
        yield [Term(str(number), pred.square().flatten(1).mean(1)) for number, pred in enumerate(preds)]


class ReadsByTheHost(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_a_step_of_several_terms_and_parts_after_it_reads_nothing_from_the_device(job):
    trainer = make_trainer(job)
    trainer.objective = BOTH
    trainer.after_update.append(Average(trainer.parameters))
    batches = {i: replace(b := trainer.batches.get(i), draws=make_draws(job, b, i)) for i in range(2)}
    trainer.batches = SimpleNamespace(get=batches.get)
    for _ in range(2):
        with ReadsByTheHost() as reads:
            pending = trainer.train_step()
        assert reads.count == 0
    assert pending.read().terms.keys() == {"flow", "blank_preservation"}


class Average:
    """An average of the weights, as a part after the update: nothing is allocated, and a bad step leaves it alone."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.kept = [parameter.detach().clone() for parameter in parameters]

    def __call__(self, was_made):
        for kept, parameter in zip(self.kept, self.parameters, strict=True):
            kept.lerp_(parameter.detach(), 0.5 * was_made)


def test_what_follows_the_update_sees_new_weights_and_is_told_of_a_bad_step(job):
    trainer = make_trainer(job)
    average = Average(trainer.parameters)
    trainer.after_update.append(average)
    expected = [kept.clone() for kept in average.kept]
    for _ in range(3):
        trainer.train_step().read()
        expected = [e.lerp(p.detach(), 0.5) for e, p in zip(expected, trainer.parameters, strict=True)]
    assert all(map(torch.equal, average.kept, expected))
    batch = trainer.batches.get(3)
    trainer.batches = SimpleNamespace(get=lambda _index: replace(batch, latents=batch.latents * float("nan")))
    trainer.train_step()
    assert all(map(torch.equal, average.kept, expected))


def observed_passes(trainer):
    """The passes of one batch as they happen."""
    found, model = [], trainer.model
    forward = type(model).forward.__get__(model)

    def watched(*args, **named):
        output = forward(*args, **named)
        found.append("forward" if torch.is_grad_enabled() else "forward without gradient")
        return output

    vars(model)["forward"] = watched
    backward = torch.Tensor.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda self: (found.append("backward"), backward(self))[1])
        trainer.train_step()
    return Passes(tuple(found))


@pytest.mark.parametrize("objective", [FlowMatching(LossOptions()), BOTH, AtOnce()], ids=["plain", "both", "at once"])
def test_passes_are_what_a_step_does(job, objective):
    trainer = make_trainer(job)
    trainer.objective = objective
    assert observed_passes(trainer) == objective.passes


def test_passes_count_what_the_planner_asks():
    assert (ONE_FORWARD.num_forwards, ONE_FORWARD.num_without, ONE_FORWARD.most_waiting) == (1, 0, 1)
    assert (BOTH.passes.num_forwards, BOTH.passes.num_without, BOTH.passes.most_waiting) == (2, 1, 1)
    assert AtOnce.passes.most_waiting == 2
    with pytest.raises(AssertionError, match="no backward follows"):
        Passes(("forward", "backward", "forward"))

"""Batches of a step that go through the model together give the step that they give apart."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.plan.decision import batches_joined, decide, joined_buckets
from wan_train.core.plan.plan import Bucket
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train.checks import check_job
from wan_train.core.train.joining import in_groups

from .helpers import make_sample, make_trainer, train_in_folder, with_class

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def one_size(job, tmp_path):
    """A job whose samples have one size, with four batches a step."""
    samples = tuple(
        make_sample(tmp_path, name, loss_weight=weight) for name, weight in zip("defgh", (1, 2, 1, 3, 1), strict=True)
    )
    loop = replace(job.loop, gradient_accumulation=4, steps=3)
    return replace(job, data=replace(job.data, samples=samples), loop=loop, memory=MemoryOptions(join_batches="on"))


def after_steps(job, joined):
    """Gradients before each of two updates, the losses that were told, and how many forwards there were."""
    trainer = make_trainer(job)
    trainer.joined = joined
    gradients, forwards = [], []
    update, model = trainer.optimizer.step, trainer.model
    model.register_forward_hook(lambda *_: forwards.append(1))

    def note(*args, **options):
        gradients.append([weight.grad.clone() for weight in trainer.parameters])
        return update(*args, **options)

    trainer.optimizer.step = note
    losses = [trainer.train_step().read().loss for _ in range(2)]
    return gradients, losses, len(forwards)


@pytest.mark.parametrize("joined", [2, 4])
def test_gradients_and_losses_are_those_of_the_batches_apart(one_size, joined):
    apart, losses, count = after_steps(one_size, 1)
    together, same, fewer = after_steps(one_size, joined)
    assert (count, fewer) == (8, 8 // joined)
    assert same == pytest.approx(losses, rel=1e-5)
    largest = max(float(weight.abs().max()) for step in apart for weight in step)
    for before, after in zip(apart, together, strict=True):
        for expected, found in zip(before, after, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * largest)


def test_a_run_joins_what_it_was_told_to_and_learns_the_same(one_size, tmp_path):
    apart = replace(one_size, memory=MemoryOptions(join_batches="off"))
    assert one_size.key == apart.key
    losses, weights, events = train_in_folder(tmp_path, one_size, "together", CPU)
    expected, others, _ = train_in_folder(tmp_path, apart, "apart", CPU)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != expected  # it was not trained apart
    assert not [event for event in events if event["event"] == "warning"]
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-2, atol=1e-4)


def test_as_many_are_joined_as_make_equal_groups_within_the_limit(one_size, tmp_path):
    def joined(accumulation, shape=(16, 1, 64, 64), mode="on"):
        samples = (make_sample(tmp_path, "picture", shape=shape),)
        loop = replace(one_size.loop, gradient_accumulation=accumulation)
        changed = replace(one_size, loop=loop, data=replace(one_size.data, samples=samples))
        return batches_joined(replace(changed, memory=MemoryOptions(join_batches=mode)), CPU)[0]

    assert joined(4) == 4  # 1,024 tokens each
    assert joined(6) == 3
    assert joined(7) == 1
    assert joined(8) == 4
    assert joined(4, shape=(16, 1, 64, 128)) == 2
    assert joined(4, shape=(16, 5, 64, 64)) == 1
    assert joined(4, mode="auto") == 1  # on the CPU results stay as they were, to the bit
    assert joined(4, mode="off") == 1


def test_a_gpu_joins_by_itself_where_nothing_was_chosen(one_size):
    job = replace(one_size, memory=MemoryOptions())
    assert batches_joined(job, CUDA) == (4, ())
    assert batches_joined(replace(job, loop=replace(job.loop, batch_size=2)), CUDA) == (1, ())
    assert batches_joined(replace(job, memory=MemoryOptions(plan="manual")), CUDA) == (1, ())


def test_what_can_not_be_joined_is_said(job, one_size):
    on = MemoryOptions(join_batches="on")
    several = replace(job, loop=replace(job.loop, gradient_accumulation=2), memory=on)
    assert batches_joined(several, CPU) == (1, ("join_batches has no effect: the samples have 2 sizes.",))
    cases = (
        (replace(one_size.loop, gradient_accumulation=1), one_size.adapter, "gradient_accumulation is 1"),
        (replace(one_size.loop, batch_size=2), one_size.adapter, "batch_size is 2"),
        (one_size.loop, replace(one_size.adapter, dropout=0.1), "at random"),
    )
    for loop, adapter, word in cases:
        joined, (sentence,) = batches_joined(replace(one_size, loop=loop, adapter=adapter), CPU)
        assert joined == 1
        assert word in sentence


def test_the_plan_counts_the_memory_and_the_forwards_of_what_is_joined(one_size):
    assert decide(one_size, check_job(one_size), CPU).joined == 4
    assert joined_buckets(one_size, 4) == [Bucket((16, 2, 4, 4), 4, 1.25)]


def test_groups_keep_the_order():
    assert in_groups((4, 5, 6, 7, 8), 2) == [(4, 5), (6, 7), (8,)]


@pytest.mark.parametrize("joined", [2, 4])
def test_the_weight_of_preservation_follows_the_samples_that_have_a_class_caption(one_size, tmp_path, joined):
    """Others, which are joined with them, are none at the target."""
    first, *rest = one_size.data.samples
    data = replace(one_size.data, samples=(with_class(tmp_path, first), *rest))
    options = RegularizerOptions(output_preservation=0.5, preservation_target=0.05)

    def steps(number):
        trainer = make_trainer(replace(one_size, data=data, regularizers=options))
        trainer.joined = number
        for weight in trainer.parameters:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(weight.numel()))
        found = [trainer.train_step().read() for _ in range(3)]
        return [report.terms["output_preservation"] for report in found], float(trainer.adaptive.state_dict()["weight"])

    terms, weight = steps(1)
    others, same = steps(joined)
    assert min(terms) > 0
    assert others == pytest.approx(terms, rel=1e-4)
    assert same == pytest.approx(weight, rel=1e-4)
    assert weight != 0.5

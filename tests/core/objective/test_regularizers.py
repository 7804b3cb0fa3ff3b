"""Preservation: AI-Toolkit's formula on the same numbers, however the model is held, and what takes no part."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from wan_train.core.errors import ConfigError
from wan_train.core.memory.graphs import Graphs
from wan_train.core.objective.forwards import noisy_batch
from wan_train.core.objective.objective import FlowMatching, objective_of
from wan_train.core.objective.passes import ONE_FORWARD, Passes
from wan_train.core.objective.regularizers import BESIDE_THE_BASE
from wan_train.core.plan.decision import decide, joined_buckets, num_batch_sizes
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train.batches import make_draws
from wan_train.core.train.regularizers import check_regularizers, regularizer_warnings
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.memory.helpers import CPU
from wan_train.tests.core.memory.test_graphs import Recorder
from wan_train.tests.core.objective.test_objective import observed_passes, trained
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.train.helpers import SIZE, make_sample, make_trainer, with_class

DOP, BLANK = {"output_preservation": 0.7}, {"blank_preservation": 1.5}
EACH = pytest.mark.parametrize("options", [DOP, BLANK, DOP | BLANK], ids=["dop", "blank", "both"])


@pytest.fixture
def job(job, tmp_path):
    """Batches of two samples, of which all have a class word; the empty caption is not zero."""
    save_file({"context": torch.full((2, SIZE.text_dim), 0.3)}, job.data.empty_text_path)
    samples = tuple(with_class(tmp_path, make_sample(tmp_path, name)) for name in "ab")
    loop = replace(job.loop, batch_size=2, caption_dropout=0.0)
    optimizer = replace(job.optimizer, max_grad_norm=0.0)
    return replace(job, data=replace(job.data, samples=samples), loop=loop, optimizer=optimizer)


def chosen(job, **options):
    return replace(job, regularizers=RegularizerOptions(**options))


def stepped(trainer):
    """The report of a step, and the gradients that its update was made of."""
    seen, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in trainer.parameters), step())
    report = trainer.train_step().read()
    return report, seen


def by_aitoolkit(job, trainer, options):
    """Loss and gradients of a batch as SDTrainer.py has them: the prior without the network, two forwards with it, one sum.

    `prior_pred` (line 2002), `noise_pred` (2128), `preservation_pred` and `mse_loss(...) * multiplier` (2195-2204).
    """
    batch = trainer.batches.get(0)
    draws = make_draws(job, batch, 0)
    latents, noise, t = batch.latents, draws.noise, draws.sigmas
    base = load_transformer(inspect(job.model.path), dtype=torch.float32, device="cpu")
    mixed = (1 - t.view(-1, 1, 1, 1, 1)) * latents + t.view(-1, 1, 1, 1, 1) * noise
    loss = F.mse_loss(trainer.model(mixed, t * 1000, batch.context), noise - latents)
    blank = torch.zeros_like(batch.context)
    blank[:, :2] = 0.3
    for name, embeds in (
        ("output_preservation", batch.of_class and batch.of_class.context),
        ("blank_preservation", blank),
    ):
        if name in options:
            with torch.no_grad():
                prior_pred = base(mixed, t * 1000, embeds)
            loss = loss + F.mse_loss(trainer.model(mixed, t * 1000, embeds), prior_pred) * options[name]
    return loss.item(), torch.autograd.grad(loss, trainer.parameters)


@EACH
def test_loss_and_gradients_are_ai_toolkits(job, options):
    job = chosen(job, **options)
    trainer = trained(make_trainer(job))
    loss, gradients = by_aitoolkit(job, trainer, options)
    report, found = stepped(trainer)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.terms.keys() == {"flow", *options}
    assert report.loss == pytest.approx(
        report.terms["flow"] + sum(w * report.terms[n] for n, w in options.items()), rel=1e-5
    )
    assert all(report.terms[name] > 1e-4 for name in options)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.grid(3)
@EACH
def test_in_one_pass_the_gradients_are_the_same(job, options):
    job = chosen(job, **options, single_pass=True)
    trainer = trained(make_trainer(job))
    loss, gradients = by_aitoolkit(job, trainer, options)
    report, found = stepped(trainer)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.terms.keys() == {"flow", *options}
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@EACH
def test_in_one_pass_copies_of_the_batch_go_through_together(job, options):
    job, number = chosen(job, **options, single_pass=True), len(options)
    passes = Passes((*["forward without gradient"] * number, "forward", "backward"), copies=1 + number)
    assert objective_of(job).passes == passes
    trainer = make_trainer(job)
    rows = rows_of_forwards(trainer)
    assert replace(observed_passes(trainer), copies=1 + number) == passes
    assert rows == [2] * number + [2 + 2 * number]
    planner = make_planner(job, decide(job, inspect(job.model.path), CPU), CARD)
    assert [bucket.batch for bucket in planner.buckets] == [2 + 2 * number]
    assert planner.task.passes == passes


def rows_of_forwards(trainer):
    """Samples of each forward that the trainer does from now on."""
    rows = []
    trainer.model.register_forward_pre_hook(lambda _model, args: rows.append(len(args[0])))
    return rows


def test_in_one_pass_a_batch_without_a_class_word_goes_alone(job):
    first, second = job.data.samples
    data = replace(job.data, samples=(first, replace(second, class_texts=())))
    job = chosen(replace(job, data=data, loop=replace(job.loop, batch_size=1)), **DOP, single_pass=True)
    trainer = make_trainer(job)
    rows = rows_of_forwards(trainer)
    terms = [set(trainer.train_step().read().terms) for _ in range(2)]
    assert sorted(terms, key=len) == [set(), {"flow", "output_preservation"}]
    assert sorted(rows) == [1, 1, 2]
    assert num_batch_sizes(job) == 2
    (alone, together) = joined_buckets(job, 1)
    assert (alone.batch, alone.share, alone.passes) == (1, 1.0, ONE_FORWARD)
    assert (together.batch, together.share, together.passes) == (2, 1.0, None)


def test_in_one_pass_sizes_are_counted_as_they_go_through_the_model(job):
    first, second = job.data.samples
    plain, other = replace(first, class_texts=()), {"shape": (16, 1, 4, 6)}

    def sizes(*samples, batch_size=1, **options):
        loop = replace(job.loop, batch_size=batch_size)
        changed = chosen(replace(job, data=replace(job.data, samples=samples), loop=loop), **options, single_pass=True)
        found = {(bucket.shape, bucket.batch): bucket.share for bucket in joined_buckets(changed, 1)}
        return num_batch_sizes(changed), sorted(found.items())

    shape = first.shape
    assert sizes(first, second, **DOP) == (1, [((shape, 2), 2.0)])
    assert sizes(plain, plain, **DOP) == (1, [((shape, 1), 2.0)])
    assert sizes(plain, replace(second, **other), **DOP) == (2, sorted([((shape, 1), 1.0), ((other["shape"], 2), 1.0)]))
    assert sizes(plain, second, **BLANK) == (1, [((shape, 2), 2.0)])  # nobody asks for the class word
    assert sizes(plain, second, **DOP, **BLANK) == (2, [((shape, 2), 1.0), ((shape, 3), 1.0)])
    # Two of three at a time: of the three pairs one has none with a class word, and the last batch may be either.
    number, found = sizes(plain, plain, second, batch_size=2, **DOP)
    assert found == [((shape, 2), pytest.approx(1.5 / 3)), ((shape, 4), pytest.approx(1.5 * 2 / 3))]
    assert number == 3  # 4 and 2 rows of two samples, 2 and 1 of one


def test_in_one_pass_a_step_without_a_class_word_is_planned_shorter(job):
    first, second = job.data.samples
    data = replace(job.data, samples=(first, replace(second, class_texts=())))
    job = chosen(replace(job, data=data, loop=replace(job.loop, batch_size=1, steps=10)), **DOP, single_pass=True)
    planner = make_planner(job, decide(job, inspect(job.model.path), CPU), CARD)
    choice = planner.describe(planner.plan)
    alone, together = (choice.estimates[bucket].seconds for bucket in planner.buckets)
    ordinary = chosen(job)
    plain = make_planner(ordinary, decide(ordinary, inspect(job.model.path), CPU), CARD)
    (expected,) = (found.seconds for found in plain.describe(plain.plan).estimates.values())
    assert alone == pytest.approx(expected, rel=1e-9)
    assert alone < together
    (size,) = choice.sizes.values()  # to those who read a step, which tells the clip's tokens alone
    assert size.seconds == pytest.approx((alone + together) / 2)


@pytest.mark.parametrize("options", [DOP, {**DOP, **BLANK}])
def test_a_step_without_a_class_word_is_planned_with_the_passes_that_it_takes(job, options):
    first, second = job.data.samples
    data = replace(job.data, samples=(first, replace(second, class_texts=())))
    job = chosen(replace(job, data=data, loop=replace(job.loop, batch_size=1, steps=10)), **options)
    trainer = make_trainer(job)
    steps = {observed_passes(trainer) for _ in range(2)}
    buckets = joined_buckets(job, 1)
    assert {bucket.passes or objective_of(job).passes for bucket in buckets} == steps
    assert [bucket.share for bucket in buckets] == [1.0, 1.0]
    assert num_batch_sizes(job) == 1  # of rows that go through the model
    planner = make_planner(job, decide(job, inspect(job.model.path), CPU), CARD)
    less, more = sorted(found.seconds for found in planner.describe(planner.plan).estimates.values())
    assert more > 1.5 * less


def test_a_step_without_a_regularization_set_is_planned_without_the_forward_of_the_base(job):
    first, second = job.data.samples
    data = replace(job.data, samples=(first, replace(second, is_regularization=True, class_texts=())))
    job = replace(job, data=data, loop=replace(job.loop, batch_size=1))
    job = chosen(job, prior_preservation=True)
    trainer = make_trainer(job)
    found = {bucket.passes or objective_of(job).passes: bucket.share for bucket in joined_buckets(job, 1)}
    assert found == dict.fromkeys((observed_passes(trainer) for _ in range(2)), 1.0)
    # With output preservation, too, no batch takes all passes: a sample has a class word, or is of a set.
    both = chosen(job, prior_preservation=True, **DOP)
    trainer = make_trainer(both)
    found = {bucket.passes or objective_of(both).passes: bucket.share for bucket in joined_buckets(both, 1)}
    assert found == dict.fromkeys((observed_passes(trainer) for _ in range(2)), 1.0)
    pairs = replace(both, loop=replace(job.loop, batch_size=2))
    (whole,) = joined_buckets(pairs, 1)
    assert whole.passes is None


def test_one_pass_keeps_routes_and_what_an_image_to_video_model_is_given():
    noisy = noisy_batch(
        torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4), torch.tensor([0.2, 0.7]), torch.randn(2, 5, 6),
        {"y": torch.randn(2, 1, 2, 4, 4)}, given_frames=1,
    )  # fmt: skip
    copies = replace(noisy, kept_tokens=torch.tensor([[0, 3], [1, 2]])).times(3)
    for name in ("noisy_latents", "timesteps", "kept_tokens"):
        whole = getattr(copies, name)
        assert len(whole) == 6
        assert all(torch.equal(part, whole[:2]) for part in whole.chunk(3))
    assert torch.equal(copies.images["y"], torch.cat([noisy.images["y"]] * 3))


def test_one_pass_is_refused_beside_crepa_and_told_without_a_term(job):
    crepa = replace(job, crepa=replace(job.crepa, weight=0.5))
    with pytest.raises(ConfigError, match="preservation_single_pass does not go with crepa_weight"):
        check_regularizers(chosen(crepa, **BLANK, single_pass=True))
    sentences = regularizer_warnings(chosen(job, single_pass=True))
    assert sentences[0] == "preservation_single_pass has no effect: output_preservation and blank_preservation are 0."


@pytest.mark.grid(6)
@EACH
@pytest.mark.parametrize(
    ("precision", "memory"),
    [
        ("fp32", {"streamed_blocks": 2, "offload_inputs": True}),
        ("fp32", {"streamed_blocks": 1, "stream_from": "pageable", "split_blocks": True}),
        ("fp32", {"keep_attention": 1, "ffn_pieces": 2}),
        ("fp32", {"checkpointing": False}),
        ("int8", {"streamed_blocks": 2}),
        ("fp8", {"checkpointing": False}),
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_how_the_model_is_held(job, options, precision, memory):
    job = chosen(replace(job, model=replace(job.model, precision=precision)), **options)
    plain = stepped(trained(make_trainer(job)))
    held = stepped(trained(make_trainer(replace(job, memory=MemoryOptions(plan="manual", **memory)))))
    assert held[0].terms == pytest.approx(plain[0].terms, rel=1e-5)
    for one, other in zip(held[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@EACH
def test_recorded_forwards_give_the_same(job, options):
    """CUDA graphs with the recorder of the CPU, which repeats what it was given."""
    job = chosen(job, **options)
    plain, graphed = trained(make_trainer(job)), trained(make_trainer(job))
    recorder, model = Recorder(), graphed.model
    vars(model)["forward"] = Graphs(
        type(model).forward.__get__(model), graphed.parameters, tell=pytest.fail, record=recorder
    )
    for _ in range(4):
        one, other = plain.train_step().read(), graphed.train_step().read()
        assert one.terms == pytest.approx(other.terms, rel=1e-5)
    assert recorder.acts == 2  # a forward and a backward: all terms use the same
    for one, other in zip(plain.parameters, graphed.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@EACH
def test_the_passes_are_what_a_step_does_and_what_is_planned(job, options):
    job = chosen(job, **options)
    passes = sum((BESIDE_THE_BASE for _ in options), ONE_FORWARD)
    assert objective_of(job).passes == passes
    assert observed_passes(make_trainer(job)) == passes
    assert make_planner(job, decide(job, inspect(job.model.path), CPU), CARD).task.passes == passes


def test_without_either_it_is_plain_flow_matching(job):
    assert objective_of(job) == FlowMatching(job.loss)
    assert make_trainer(job).batches.get(0).of_class is None  # nor are the captions read


def test_a_sample_without_a_class_word_adds_nothing(job):
    """Of two in a batch: half the mean, and the gradient of the other alone."""
    first, second = job.data.samples
    job = chosen(replace(job, data=replace(job.data, samples=(first, replace(second, class_texts=())))), **DOP)
    trainer = trained(make_trainer(job))
    noisy = trainer.add_noise(trainer.batches.get(0), 0)
    names = trainer.batches.get(0).names
    _, (term,) = trainer.objective.terms(noisy, trainer.forwards)
    kept = names.index(first.name)
    assert term.losses[kept] > 1e-4
    assert term.losses[1 - kept] == 0
    pred, base = (f(noisy, noisy.of_class.context) for f in (trainer.forwards.pred, trainer.forwards.base))
    assert term.losses[kept].item() == pytest.approx(F.mse_loss(pred[kept], base[kept]).item(), rel=1e-5)


def test_a_batch_of_such_samples_alone_takes_no_forwards(job):
    plain = job.data.samples[0]
    other = replace(plain, name="other", class_texts=(), is_regularization=True)
    job = chosen(replace(job, data=replace(job.data, samples=(plain, other))), **DOP)
    trainer = make_trainer(replace(job, loop=replace(job.loop, batch_size=1)))
    seen = {}
    for index in range(2):
        batch = trainer.batches.get(index)
        trainer.batches = SimpleNamespace(get=lambda _index, batch=batch: batch)
        seen[batch.names[0]] = observed_passes(trainer).order
        trainer = make_trainer(replace(job, loop=replace(job.loop, batch_size=1)))
    assert seen == {"other": ONE_FORWARD.order, "a": (ONE_FORWARD + BESIDE_THE_BASE).order}


def test_frames_that_the_model_is_given_do_not_count(job):
    trainer = trained(make_trainer(chosen(job, **BLANK)))
    noisy = trainer.add_noise(trainer.batches.get(0), 0)
    whole, rest = (
        list(trainer.objective.terms(replace(noisy, given_frames=given), trainer.forwards))[1][0].losses
        for given in (0, 1)
    )
    context = trainer.forwards.empty_context(noisy)
    pred, base = trainer.forwards.pred(noisy, context), trainer.forwards.base(noisy, context)
    second = (pred - base)[:, :, 1:].square().flatten(1).mean(1)
    torch.testing.assert_close(rest, second)
    assert not torch.allclose(whole, rest)


@pytest.mark.parametrize("name", [*DOP, *BLANK])
def test_what_is_preserved_changes_less(job, name):
    """Trained for some steps, the prediction on the kept caption is nearer to the base's than without."""
    job = replace(job, optimizer=replace(job.optimizer, learning_rate=0.01))
    distances = []
    for weight in (1e-9, 20.0):
        trainer = make_trainer(chosen(job, **{name: weight}))
        for _ in range(8):
            report = trainer.train_step().read()
        assert math.isfinite(report.loss)
        distances.append(report.terms[name])
    assert 0 < distances[1] < distances[0] / 2

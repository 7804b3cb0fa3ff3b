"""Regularisers in a run: each option changes it, a run that was stopped goes on exactly, and what has no effect is told."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.peft_hooks import factors_of, lora_layers
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.recipe import jobs as existing
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.job import CaptionText, job_from_json, job_to_json
from wan_train.core.settings.option import options_of
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.settings.stage import settings_from_names
from wan_train.core.train.average import Ema
from wan_train.core.train.batches import BatchSchedule, make_draws
from wan_train.core.train.build import build_job, job_warnings
from wan_train.core.train.checks import check_job
from wan_train.core.train.events import EventWriter, read_history
from wan_train.core.train.label import describe_lora
from wan_train.core.train.regularizers import regularizer_warnings
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.validation import validation_loss
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.objective.test_objective import trained
from wan_train.tests.core.train.helpers import SIZE, make_sample, make_trainer, train_in_folder, with_class

CPU = torch.device("cpu")
# Option -> the value that must change the losses, and what is set beside it.
TRIED = {
    "output_preservation": (2.0, {}),
    "blank_preservation": (2.0, {}),
    "max_weight_norm": (0.001, {}),
    "preservation_target": (1e-6, {"output_preservation": 2.0}),
    "single_pass": (True, {"output_preservation": 2.0}),
    "prior_preservation": (True, {}),
}
ALONE = [{**beside, name: value} for name, (value, beside) in TRIED.items()]
TOGETHER = {name: value for name, (value, _) in TRIED.items()}
OF_NO_TERM = {"max_weight_norm", "preservation_target", "single_pass", "prior_preservation"}


@pytest.fixture
def job(job, tmp_path):
    samples = tuple(with_class(tmp_path, sample) for sample in job.data.samples)
    return replace(job, data=replace(job.data, samples=samples))


def with_set(job):
    """The job with its second sample in a regularization set."""
    first, second, *others = job.data.samples
    return replace(job, data=replace(job.data, samples=(first, replace(second, is_regularization=True), *others)))


def chosen(job, **options):
    return replace(job, regularizers=RegularizerOptions(**options))


def losses_of(job, steps=3):
    trainer = make_trainer(job)
    return [trainer.train_step().read().loss for _ in range(steps)]


def test_every_option_is_tried():
    assert TRIED.keys() == {item.name for item in options_of(RegularizerOptions)}


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", TRIED)
def test_an_option_changes_the_losses_and_the_key_of_a_run(job, name):
    value, beside = TRIED[name]
    if name == "prior_preservation":
        job = with_set(job)
    if name == "single_pass":  # the same but for what is drawn
        job = replace(job, adapter=replace(job.adapter, dropout=0.5))
    plain, changed = chosen(job, **beside), chosen(job, **beside, **{name: value})
    assert changed.key != plain.key
    assert chosen(job, **beside, **{name: type(value)()}).key == plain.key
    assert losses_of(changed) != losses_of(plain)
    assert job_from_json(job_to_json(changed)) == changed


def test_class_captions_are_in_the_key_where_they_are_used(job):
    plain = replace(job, data=replace(job.data, samples=tuple(replace(s, class_texts=()) for s in job.data.samples)))
    assert job.key == plain.key
    used = chosen(job, output_preservation=1.0)
    first, *others = job.data.samples
    other = replace(first, class_texts=(CaptionText(path=first.class_texts[0].path, key="another"),))
    assert replace(used, data=replace(job.data, samples=(other, *others))).key != used.key


def test_a_larger_weight_is_another_run_and_a_limit_that_binds_not_is_the_same(job):
    assert losses_of(chosen(job, output_preservation=1.0)) != losses_of(chosen(job, output_preservation=3.0))
    assert losses_of(chosen(job, max_weight_norm=1e5)) == losses_of(job)


def test_no_layer_is_above_the_limit_after_any_step(job):
    trainer = make_trainer(chosen(job, max_weight_norm=0.001))
    for _ in range(3):
        trainer.train_step().read()
        layers = [factors_of(layer) for layer in lora_layers(trainer.model).values()]
        norms = [((layer.up @ layer.down).norm() * layer.scale).item() for layer in layers]
        assert max(norms) <= 0.001 * (1 + 1e-5)
        assert max(norms) > 0.0005  # the update itself was far larger


@pytest.mark.grid(4)
@pytest.mark.parametrize("options", [*ALONE, TOGETHER], ids=lambda o: "-".join(o))
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, job, options):
    job = with_set(job) if "prior_preservation" in options else job
    job = replace(chosen(job, **options), adapter=replace(job.adapter, dropout=0.1))
    job = replace(job, loop=replace(job.loop, batch_size=2, gradient_accumulation=2))
    losses, lora, events = train_in_folder(tmp_path, job, "whole", CPU)
    terms = {name for event in events if event["event"] == "step" for name in event.get("terms", {})}
    of_terms = options.keys() - OF_NO_TERM
    assert terms == ({"flow", *of_terms} if of_terms else set())
    folder = RunFolder(tmp_path / "runs" / "stopped")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    writer = EventWriter(folder.events_path)

    def should_stop():
        return max(read_history(folder.events_path).losses, default=0) >= 3

    with pytest.raises(RunStoppedError):
        run_job(folder, writer, CPU, should_stop)
    run_job(folder, writer, CPU, lambda: False)
    again = read_history(folder.events_path).losses
    assert [again[step] for step in sorted(again)] == losses
    found = load_file(folder.finished_lora(job.loop.steps))
    assert found.keys() == lora.keys()
    assert all(torch.equal(found[name], lora[name]) for name in lora)


def test_validation_is_without_them(job):
    held = replace(job.data.samples[0], name="held", held_out=True)
    job = replace(job, data=replace(job.data, samples=(*job.data.samples, held)))
    both = chosen(job, output_preservation=1.0, blank_preservation=1.0)
    assert validation_loss(make_trainer(both)) == validation_loss(make_trainer(job))


def test_each_drawn_caption_has_its_own_class_caption(job, tmp_path):
    """Also where the caption itself is dropped."""
    first = job.data.samples[0]
    path = tmp_path / "more.safetensors"
    save_file({"context": torch.randn(3, SIZE.text_dim)}, path)
    sample = with_class(tmp_path, replace(first, more_texts=(CaptionText(path=str(path), key="more"),), class_texts=()))
    data = replace(job.data, samples=(sample,))
    captions = [load_file(p)["context"] for p in (sample.text_path, str(path))]
    of_class = [load_file(text.path)["context"] for text in sample.class_texts]
    schedule, dropping = (
        BatchSchedule(data, batch_size=1, seed=3, caption_dropout=chance, with_class=True) for chance in (0.0, 1.0)
    )
    drawn = []
    for index in range(12):
        batch = schedule.load(index)
        number = next(i for i, c in enumerate(captions) if torch.equal(batch.context[0, : len(c)], c))
        drawn.append(number)
        assert torch.equal(batch.of_class.context[0, :4], of_class[number])
        assert torch.equal(dropping.load(index).of_class.context, batch.of_class.context)
        assert batch.of_class.is_there.tolist() == [1.0]
    assert set(drawn) == {0, 1}


def test_it_is_refused_before_a_model_is_loaded_where_no_caption_has_a_class_word(job):
    bare = replace(job, data=replace(job.data, samples=tuple(replace(s, class_texts=()) for s in job.data.samples)))
    check_job(chosen(bare, blank_preservation=1.0))
    with pytest.raises(
        ConfigError, match=r"output_preservation is 0\.5, but no caption has a class word: set trigger_word"
    ):
        check_job(chosen(bare, output_preservation=0.5))


def test_a_limit_of_weights_that_the_optimizer_averages_is_refused(job):
    job = replace(job, optimizer=replace(job.optimizer, name="schedulefree"))
    check_job(job)
    with pytest.raises(ConfigError, match="max_weight_norm does not go with the optimizer schedulefree"):
        check_job(chosen(job, max_weight_norm=1.0))


def test_a_limit_of_weights_that_are_no_lora_is_refused(job):
    job = replace(job, adapter=replace(job.adapter, kind="loha"))
    check_job(job)
    with pytest.raises(ConfigError, match="max_weight_norm is for plain LoRAs, and adapter is loha"):
        check_job(chosen(job, max_weight_norm=1.0))


def test_the_average_is_of_the_limited_weights(job):
    """As run.py adds it: behind the limit."""
    trainer = make_trainer(chosen(job, max_weight_norm=0.001))
    trainer.after_update.append(Ema(trainer.model, trainer.parameters, EmaOptions(warm_up=True, every=1)))
    trainer.train_step().read()
    trained = [parameter.detach().clone() for parameter in trainer.parameters]
    with trainer.after_update[1].shown():
        for one, other in zip(trained, trainer.parameters, strict=True):  # the decay of the first update is 0
            torch.testing.assert_close(other.detach(), one, rtol=1e-5, atol=1e-7)


def test_samples_that_take_no_part_are_told(job):
    first, second, third = job.data.samples
    regular = replace(second, class_texts=(), is_regularization=True)
    data = replace(job.data, samples=(first, regular, replace(third, class_texts=())))
    told = [s for s in job_warnings(chosen(replace(job, data=data), output_preservation=1.0)) if "preservation" in s]
    assert told == [
        "output_preservation leaves out the regularization sets (samples: 1), which have no trigger word.",
        "output_preservation leaves out 1 of 3 samples, whose dataset has no class word (c): set class_word there, too.",
    ]
    assert not any("preservation" in s for s in job_warnings(chosen(job, output_preservation=1.0)))
    assert "class_word has no effect: output_preservation is 0." in job_warnings(job)


def test_class_captions_that_do_not_go_with_the_captions_are_refused(job):
    (text,) = job.data.samples[0].class_texts
    with pytest.raises(ConfigError, match="has 1 caption, but 2 with the class word"):
        replace(job.data.samples[0], class_texts=(text, text))


def test_a_class_caption_that_is_gone_or_something_else_is_told(job, tmp_path):
    job = chosen(job, output_preservation=1.0)
    existing.check_job(job)
    path = job.data.samples[1].class_texts[0].path
    save_file({"context": torch.zeros(2, 99)}, path)
    with pytest.raises(DatasetError, match=r"is not what was cached of a caption of b"):
        existing.check_job(job)


def test_settings_come_to_the_job_and_to_the_lora(job):
    names = {"single_pass": "preservation_single_pass"}
    settings = settings_from_names({names.get(name, name): value for name, value in TOGETHER.items()})
    built = build_job(inspect(job.model.path), job.data, settings, name="x", stage="low")
    assert built.regularizers == RegularizerOptions(**TOGETHER)
    description = describe_lora(built, step=1)
    assert description.training.levels["ss_scale_weight_norms"] == 0.001
    assert description.job["regularizers"] == TOGETHER
    assert "ss_scale_weight_norms" not in describe_lora(job, step=1).training.levels


def test_a_regularization_set_learns_what_the_base_says(job, tmp_path):
    """Loss and gradients of a batch of a set and a plain sample: the base's prediction is the target of the first alone."""
    first = make_sample(tmp_path, "of a set", is_regularization=True)
    samples = (first, make_sample(tmp_path, "plain"))
    loop = replace(job.loop, batch_size=2, caption_dropout=0.0)
    job = chosen(replace(job, data=replace(job.data, samples=samples), loop=loop), prior_preservation=True)
    trainer = trained(make_trainer(job))
    batch = trainer.batches.get(0)
    assert batch.priors.tolist() == [name == "of a set" for name in batch.names]
    draws = make_draws(job, batch, 0)
    t = draws.sigmas.view(-1, 1, 1, 1, 1)
    mixed, target = (1 - t) * batch.latents + t * draws.noise, draws.noise - batch.latents
    base = load_transformer(inspect(job.model.path), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        said = base(mixed, draws.sigmas * 1000, batch.context)
    place = batch.names.index("of a set")
    target[place] = said[place]
    loss = (trainer.model(mixed, draws.sigmas * 1000, batch.context) - target).square().mean()
    wanted = torch.autograd.grad(loss, trainer.parameters)
    seen, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in trainer.parameters), step())
    trainer.job = replace(job, optimizer=replace(job.optimizer, max_grad_norm=0.0))
    report = trainer.train_step().read()
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(seen, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_lora_that_changes_nothing_has_nothing_to_learn_from_a_set(job):
    samples = tuple(replace(sample, is_regularization=True) for sample in job.data.samples)
    job = chosen(replace(job, data=replace(job.data, samples=samples)), prior_preservation=True)
    assert losses_of(job, steps=1) == [0.0]


def test_prior_preservation_without_a_set_is_told(job):
    plain = chosen(replace(job, data=replace(job.data, samples=tuple(replace(s, class_texts=()) for s in job.data.samples))),
                   prior_preservation=True)  # fmt: skip
    assert regularizer_warnings(plain) == ["prior_preservation has no effect: no dataset is a regularization set."]
    assert regularizer_warnings(with_set(plain)) == []

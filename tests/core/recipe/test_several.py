"""Several datasets in one run, by the whole way: recipe, scan, caches, job, step."""

import io

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.cli.display import Display
from wan_train.core.errors import ConfigError
from wan_train.core.recipe.lengths import planned_lengths
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, prepare_recipe, scan
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.train import loop
from wan_train.core.train.batches import make_draws
from wan_train.core.train.length import job_length
from wan_train.tests.core.train.helpers import make_trainer
from wan_train.tools.shapes import draw_dataset


@pytest.fixture
def further(tmp_path):
    """Two pictures of the size of those of `tables`."""
    draw_dataset(tmp_path / "further", clips=0, images=2, size=32, seed=7)
    for path in (tmp_path / "further").glob("*.txt"):
        path.write_text(path.read_text().replace("[trigger] ", ""))
    return tmp_path / "further"


def several(tables, further, *, loop, first=None, second=None):
    small = {"width": 32, "height": 32}
    datasets = [{**tables["dataset"], **(first or {})}, {"folder": str(further), **small, **(second or {})}]
    return {**tables, "dataset": datasets, "loop": {"steps": 4, **loop}}


def make(tables, tmp_path, stage="high"):
    recipe = recipe_from_tables(tables, tmp_path)
    display = Display(io.StringIO())
    dataset = scan(recipe, display)
    return jobs(recipe, check_recipe(recipe), cache(recipe, dataset, display))[stage]


def by_hand(trainer, sample, noise, sigma):
    """Gradient of the mean squared error of one sample, from the formulas: noisy = (1 - s) z + s n, target = n - z."""
    latents = load_file(sample.latents_path)["latents"][None]
    context = load_file(sample.text_path)["context"][None]
    context = torch.nn.functional.pad(context, (0, 0, 0, 512 - context.shape[1]))
    noisy = (1 - sigma) * latents + sigma * noise[None]
    pred = trainer.model(noisy, sigma.view(1) * 1000, context)
    loss = ((pred - (noise[None] - latents)) ** 2).mean()
    return loss.item(), torch.autograd.grad(loss, trainer.parameters, allow_unused=True)


def test_gradients_count_what_their_datasets_weigh(tables, further, tmp_path, monkeypatch):
    """Three pictures that weigh 2 and two that weigh 0.25, in one batch of five."""
    tables = several(tables, further, loop={"batch_size": 5}, first={"loss_weight": 2.0}, second={"loss_weight": 0.25})
    job = make(tables | {"optimizer": {"max_grad_norm": 0.0}}, tmp_path)
    assert [sample.loss_weight for sample in job.data.samples] == [2.0] * 3 + [0.25] * 2
    trainer = make_trainer(job)
    batch = trainer.batches.get(0)
    draws = make_draws(job, batch, 0)
    samples = {sample.name: sample for sample in job.data.samples}
    wanted, losses = [torch.zeros_like(p) for p in trainer.parameters], []
    for i, name in enumerate(batch.names):
        loss, gradients = by_hand(trainer, samples[name], draws.noise[i], draws.sigmas[i])
        losses.append(loss)
        for total, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                total += samples[name].loss_weight * gradient / 5
    found = []
    clip = loop.clip_gradients

    def watch(parameters, options):
        found.extend(p.grad.clone() for p in parameters)
        return clip(parameters, options)

    monkeypatch.setattr(loop, "clip_gradients", watch)
    report = trainer.train_step().read()
    assert sum(gradient.abs().sum() for gradient in wanted) > 0
    for gradient, right in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, right, rtol=1e-4, atol=1e-7)
    assert report.loss == pytest.approx(sum(losses) / 5, rel=1e-5)  # what is shown is not weighted


def test_an_epoch_has_each_dataset_as_often_as_it_repeats(tables, further, tmp_path):
    tables = several(tables, further, loop={}, first={"repeats": 2}, second={"repeats": 3, "held_out": 1})
    job = make(tables, tmp_path)
    batches = make_trainer(job).batches.schedule
    assert batches.batches_per_epoch == job_length(job).batches == 3 * 2 + 1 * 3
    names = [batches.samples_at(i)[0].name for i in range(9)]
    assert sorted(name.split("/")[0] for name in names) == ["further"] * 3 + ["shapes"] * 6
    assert [sample.name.split("/")[0] for sample in job.held_out_samples] == ["further"]


def test_captions_are_dropped_where_their_dataset_says(tables, further, tmp_path):
    tables = several(tables, further, loop={"caption_dropout": 0.0}, second={"drop_captions": 1.0})
    job = make(tables, tmp_path)
    empty = load_file(job.data.empty_text_path)["context"]
    schedule = make_trainer(job).batches.schedule
    for index in range(5):
        batch = schedule.load(index)
        is_empty = torch.equal(batch.context[0, : len(empty)], empty) and not batch.context[0, len(empty) :].any()
        assert is_empty == batch.names[0].startswith("further/")


def test_the_lora_knows_all_trigger_words_and_the_set_that_has_none(tables, further, tmp_path):
    job = make(several(tables, further, loop={}, second={"trigger_word": "zkw"}), tmp_path)
    assert job.trigger_word == "shp, zkw"
    assert {sample.caption.split(",")[0] for sample in job.data.samples[3:]} == {"zkw"}
    plain = make(several(tables, further, loop={}, second={"trigger_word": "zkw", "regularization": True}), tmp_path)
    assert plain.trigger_word == "shp"
    assert not any("zkw" in sample.caption for sample in plain.data.samples)
    assert [sample.is_regularization for sample in plain.data.samples] == [False] * 3 + [True] * 2


def test_a_dataset_that_is_off_leaves_the_run_as_it_was(tables, further, tmp_path):
    off = several(tables, further, loop={}, second={"enabled": False})
    old = make(tables, tmp_path)
    assert make(off, tmp_path) == old
    assert make({**tables, "dataset": [tables["dataset"]]}, tmp_path).key == old.key
    assert make(several(tables, further, loop={}), tmp_path).key != old.key


def test_defaults_written_out_change_no_key(tables, tmp_path):
    plain = {"more_sizes": "", "loss_weight": 1.0, "regularization": False, "drop_captions": "auto", "enabled": True}
    written = {**tables, "dataset": {**tables["dataset"], **plain}}
    assert make(written, tmp_path) == make(tables, tmp_path)


def test_more_sizes_by_the_whole_way(tables, tmp_path):
    job = make({**tables, "dataset": {**tables["dataset"], "more_sizes": "48"}}, tmp_path)
    assert [sample.shape[2:] for sample in job.data.samples] == [(4, 4), (6, 6)] * 3
    assert len({sample.latents_key for sample in job.data.samples}) == 6


def test_what_is_planned_is_what_is_said_before_the_start(tables, further, tmp_path):
    said = io.StringIO()
    tables = several(tables, further, loop={"batch_size": 2, "steps": 6}, second={"repeats": 2})
    recipe = recipe_from_tables({**tables, "low": {"epochs": 3}}, tmp_path)
    cache(recipe, scan(recipe, Display(io.StringIO()), report=False), Display(io.StringIO()))  # here: no other process
    planned = prepare_recipe(recipe, ["cpu"], Display(said))
    lengths = planned_lengths(recipe, scan(recipe, Display(io.StringIO()), report=False))
    assert lengths == {plan.job.stage: job_length(plan.job) for plan in planned}
    assert [lengths[stage].steps for stage in ("high", "low")] == [6, 12]
    lines = said.getvalue().splitlines()
    assert (
        "high: an epoch uses each sample once, times its repeats: 4 steps with batch_size 2; 6 steps are 1.5 epochs"
        in lines
    )
    assert "in all: 18 steps" in lines
    assert any(line.startswith("further: 0 clips, 2 images: 4 samples an epoch; ") for line in lines)
    assert "together: 0 clips, 5 images: 7 samples an epoch" in lines


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"width": 65}, "recipe.dataset.2: width is 65, but Wan needs a multiple of 16: use 64 or 80."),
        ({"repeats": 0}, "recipe.dataset.2: repeats must be at least 1, got 0."),
        ({"folder": " "}, "recipe.dataset.2.folder is empty: name the folder that holds the images and clips."),
        (
            {"more_sizes": "0x64"},
            "recipe.dataset.2: a side of more_sizes (0x64) is 0, but Wan needs a multiple of 16: use 16 or more.",
        ),
    ],
)
def test_a_mistake_is_told_with_the_dataset_that_has_it(tables, further, tmp_path, second, sentence):
    recipe = several(tables, further, loop={"steps": 2}, second=second)
    with pytest.raises(ConfigError) as error:
        recipe_from_tables(recipe, tmp_path)
    assert str(error.value) == sentence


def test_a_dataset_without_a_folder_is_not_the_folder_of_the_recipe(tables, tmp_path):
    tables["dataset"]["folder"] = ""
    with pytest.raises(ConfigError, match=r"recipe\.dataset\.folder is empty"):
        recipe_from_tables(tables, tmp_path)

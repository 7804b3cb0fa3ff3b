"""Whole setups: every option of the files has its line, the recipe is one, and what can't be told is refused."""

import json
import re
import shlex

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.importers.answers import OUTCOMES
from wan_train.core.importers.report import report
from wan_train.core.importers.setup import import_setup
from wan_train.core.importers.texts import SetupFile
from wan_train.core.recipe.recipe import read_recipe, recipe_to_toml
from wan_train.tests.core.importers.given import AITOOLKIT, MUSUBI_DATASET, SETUPS, import_files

each_setup = pytest.mark.parametrize("peer", SETUPS)


def values_in(data):
    """How many options tables hold: values, and lists of plain values, each of which is one."""
    if isinstance(data, dict):
        return sum(values_in(value) for value in data.values())
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return sum(values_in(item) for item in data)
    return 1


def options_in(name, text):
    """How many options a file has, counted without the importers."""
    if name.endswith(".json"):
        return values_in(json.loads(text))
    if name.endswith(".yaml"):
        return values_in(pytest.importorskip("yaml").safe_load(text))
    if name.endswith(".toml"):
        return values_in(pytest.importorskip("tomllib").loads(text))
    joined = text.replace("\\\n", " ")
    return sum(word.startswith("--") for one in joined.splitlines() if "wan_" in one for word in shlex.split(one))


@each_setup
def test_every_option_has_a_line(peer):
    imported = import_files(SETUPS[peer])
    assert imported.peer == peer
    for name, text in SETUPS[peer].items():
        lines = [line for line in imported.given if line.given.file == name]
        assert len(lines) == options_in(name, text), name
    assert {line.answer.outcome for line in imported.lines} <= set(OUTCOMES)


def holds(imported, place, value):
    """Whether the recipe has the value at the place, of whichever dataset."""
    group, _, name = place.partition(".")
    sources = imported.recipe.dataset if group == "dataset" else [getattr(imported.recipe, group)] if name else []
    found = [getattr(source, name) for source in sources] if name else [getattr(imported.recipe, group)]
    return any(value == own or (isinstance(own, tuple) and tuple(value) == own) for own in found)


@pytest.mark.parametrize(
    "changed",
    [
        {}, {"flow_use_uniform_schedule": True}, {"flow_use_beta_schedule": True},
        {"flow_schedule_shift": 0, "flow_schedule_auto_shift": True},
        {"flow_schedule_shift": 0, "flow_use_beta_schedule": True}, {"loss_type": "huber"}, {"optimizer": "prodigy"},
        {"lr_scheduler": "polynomial"}, {"grad_clip_method": "norm", "max_grad_norm": 0},
    ],
    ids=str,
)  # fmt: skip
@each_setup
def test_what_a_file_says_is_not_lost_to_what_no_file_says(peer, changed):
    """Of two lines with one place the later counts, and a trainer's defaults come later."""
    files = SETUPS[peer]
    if changed and peer != "simpletuner":
        pytest.skip("options of SimpleTuner")
    if changed:
        files = {**files, "config.json": json.dumps({**json.loads(files["config.json"]), **changed})}
    imported = import_files(files)
    told = {place: value for line in imported.given for place, value in line.answer.values.items()}
    told = {place: value for place, value in told.items() if not place.startswith(("preview.", "dataset.variants"))}
    told.pop("name", None)  # each expert's file has one of its own
    assert len(told) > 10
    assert [place for place, value in told.items() if not holds(imported, place, value)] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, ""),
        ({"optimizer": "prodigy", "use_ema": True}, ""),
        ({"optimizer": "adamw_schedulefree", "use_ema": True}, "averages the weights by itself: turn ema off"),
    ],
    ids=str,
)
def test_methods_that_do_not_go_together_here_are_to_do(options, sentence):
    """A run would refuse them; SimpleTuner takes them."""
    files = SETUPS["simpletuner"]
    config = json.dumps({**json.loads(files["config.json"]), **options})
    todo = [one for one in import_files({**files, "config.json": config}).to_fill if not one.startswith("models.")]
    assert (len(todo) == 1 and sentence in todo[0]) if sentence else todo == []


@each_setup
def test_whoever_is_not_mapped_says_why(peer):
    for line in import_files(SETUPS[peer]).lines:
        assert line.answer.why or line.answer.outcome == "mapped", line.given.name


@each_setup
def test_no_option_of_these_setups_is_unknown(peer):
    found = [line.given.name for line in import_files(SETUPS[peer]).lines if "no such option" in line.answer.why]
    assert found == []


@each_setup
def test_the_recipe_is_one(peer, tmp_path):
    pytest.importorskip("tomllib")
    imported = import_files(SETUPS[peer])
    path = tmp_path / "job.toml"
    path.write_text(recipe_to_toml(imported.recipe), encoding="utf-8")
    read = read_recipe(path)
    assert read.name == imported.recipe.name
    assert [len(read.dataset), read.adapter, read.optimizer] == [
        len(imported.recipe.dataset), imported.recipe.adapter, imported.recipe.optimizer,
    ]  # fmt: skip


@each_setup
def test_the_report_names_every_option(peer):
    imported = import_files(SETUPS[peer])
    text = report(imported)
    assert re.match(rf".*: {len(imported.given)} options in", text)
    assert [line.given.name for line in imported.given if f"{line.given.name} = " not in text] == []


def test_an_option_that_nobody_knows_is_told():
    imported = import_files({"job.yaml": AITOOLKIT.replace("steps: 3000", "steps: 3000\n        zap: 2")})
    (line,) = [line for line in imported.given if line.given.key == "train.zap"]
    assert (line.answer.outcome, line.answer.why) == ("not supported", "there is no such option here.")
    assert "train.zap = 2: there is no such option here." in report(imported)


def test_a_number_out_of_range_is_refused_by_the_declaration():
    imported = import_files({"job.yaml": AITOOLKIT.replace("linear: 16", "linear: 99999")})
    (line,) = [line for line in imported.given if line.given.key == "network.linear"]
    assert line.answer.outcome == "not supported"
    assert "rank must be at most 4096" in line.answer.why
    assert imported.recipe.adapter.rank == 16


def test_files_of_two_trainers_are_refused():
    with pytest.raises(
        ConfigError, match=r"dataset.toml \(musubi-tuner\) and job.yaml \(AI-Toolkit\): bring one setup"
    ):
        import_files({"dataset.toml": MUSUBI_DATASET, "job.yaml": AITOOLKIT})


@pytest.mark.parametrize("text", ['{"nodes": [], "links": []}', "{}", "[1, 2]", "hello"])
def test_what_is_no_setup_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"thing\.json is no(t valid| setup)"):
        import_setup([SetupFile("thing.json", text)])


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="the job trains flux, and Wan models alone"):
        import_files({"job.yaml": AITOOLKIT.replace("wan22_14b", "flux").replace("Wan2.2-T2V-A14B", "FLUX.1")})


def test_no_file_is_refused():
    with pytest.raises(ConfigError, match="no file was given"):
        import_setup([])


@pytest.mark.parametrize(
    ("peer", "before", "after", "name"),
    [
        ("musubi", "--seed 5", "--seed 5 --log_with wandb", "--log_with"),
        ("simpletuner", '"seed": 42', '"seed": 42, "report_to": "wandb"', "report_to"),
        ("aitoolkit", "      save:", "      logging: {use_wandb: true}\n      save:", "logging.use_wandb"),
    ],
)
def test_trackers_are_told_where_they_are_turned_on(peer, before, after, name):
    files = {file: text.replace(before, after) for file, text in SETUPS[peer].items()}
    assert files != SETUPS[peer]
    imported = import_files(files)
    (why, *_) = [line.answer.why for line in imported.lines if line.given.name.endswith(name)]
    assert "[track]" in why
    assert "wandb" not in recipe_to_toml(imported.recipe)

"""The job file for people: what it may hold, how it is refused, and that nothing is lost on the way to disk and back."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.recipe.presets import preset
from wan_train.core.recipe.recipe import (
    Recipe,
    apply_changes,
    read_recipe,
    read_tables,
    recipe_from_tables,
    recipe_tables,
    recipe_to_toml,
)
from wan_train.core.serial import from_dict
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.settings.option import all_options
from wan_train.core.settings.stage import StageSettings, settings_from_names

PACK = Path(__file__).resolve().parents[3]


def read(tmp_path, tables, *changes):
    return recipe_from_tables(tables, tmp_path, "job.toml", changes)


def full(tables):
    """Every kind of value: text with quotes and other scripts, numbers small and large, lists, a switch."""
    return {
        **tables,
        "name": "Ölbild (2) v1.5",
        "author": 'Ann "A" Öz \\ 日本\n',
        "conditioning": "first frame",
        "adapter": {"rank": 8, "targets": ["self_attn", "ffn"]},
        "optimizer": {"learning_rate": 3e-7, "weight_decay": 0},
        "memory": {"checkpointing": False},
        "low": {"optimizer": {"learning_rate": 1e-3}, "epochs": 3, "boundary": 0.9},
        "lora": {"folder": "out", "high": "H-x", "precision": "fp32"},
    }


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_round_trip(tmp_path, tables, ending):
    if ending == "toml":
        pytest.importorskip("tomllib")
    recipe = read(tmp_path, full(tables))
    path = tmp_path / "elsewhere" / f"job.{ending}"
    path.parent.mkdir()
    text = json.dumps(recipe_tables(recipe)) if ending == "json" else recipe_to_toml(recipe)
    path.write_text(text, encoding="utf-8")
    assert read_recipe(path) == recipe
    assert recipe.optimizer.learning_rate == 3e-7
    assert "keep_last" not in text  # what has its default is left out


def test_relative_paths_are_relative_to_the_file(tmp_path, tables):
    tables["dataset"]["folder"] = "pictures"
    tables["lora"] = {"folder": "../loras"}
    recipe = read(tmp_path, tables)
    assert recipe.dataset[0].folder == str(tmp_path / "pictures")
    assert recipe.cache_path == tmp_path / "wan_train" / "cache"
    assert recipe.lora_folder == tmp_path / ".." / "loras"
    assert dataclasses.replace(recipe, lora=type(recipe.lora)()).lora_folder == tmp_path / "wan_train" / "loras"


def test_a_stage_has_the_shared_settings_with_its_own_on_top(tmp_path, tables):
    recipe = read(tmp_path, {**tables, "low": {"optimizer": {"learning_rate": 1e-3}, "loop": {"seed": 7}}})
    low, high = recipe.settings("low"), recipe.settings("high")
    assert (high.optimizer.learning_rate, high.loop.seed) == (1e-4, 42)
    assert (low.optimizer.learning_rate, low.loop.seed) == (1e-3, 7)
    same = dataclasses.replace(low, optimizer=high.optimizer, loop=high.loop)
    assert same == high
    assert low.loop.steps == 4


def test_length_in_epochs_or_in_steps(tmp_path, tables):
    both = {**tables, "epochs": 3}
    with pytest.raises(ConfigError, match=r"job.toml has epochs and loop.steps: give one"):
        read(tmp_path, both)
    with pytest.raises(ConfigError, match=r"\[low\] has epochs and loop.steps"):
        read(tmp_path, {**tables, "low": both | {"loop": {"steps": 2}}})
    del both["loop"]
    recipe = read(tmp_path, {**both, "low": {"loop": {"steps": 9}}})
    assert recipe.settings("high").epochs == 3
    assert (recipe.settings("low").epochs, recipe.settings("low").loop.steps) == (0, 9)
    assert read(tmp_path, both, "loop.steps=8").settings("high").epochs == 0


def several(tables, *more):
    return {**tables, "dataset": [{**tables["dataset"], "width": 64}, *more]}


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_several_datasets_and_back(tmp_path, tables, ending):
    if ending == "toml":
        pytest.importorskip("tomllib")
    further = {"folder": "more", "repeats": 3, "more_sizes": "48, 64x32", "loss_weight": 0.5, "drop_captions": 0.1}
    recipe = read(tmp_path, several(tables, further, {"folder": "plain", "regularization": True, "enabled": False}))
    assert [Path(source.folder).name for source in recipe.dataset] == ["shapes", "more", "plain"]
    assert recipe.dataset[1].folder == str(tmp_path / "more")
    assert [source.repeats for source in recipe.datasets] == [1, 3]  # the third is off
    path = tmp_path / f"job.{ending}"
    text = json.dumps(recipe_tables(recipe)) if ending == "json" else recipe_to_toml(recipe)
    path.write_text(text, encoding="utf-8")
    assert read_recipe(path) == recipe
    if ending == "toml":
        assert text.count("[[dataset]]") == 3
        assert "[dataset]" in recipe_to_toml(read(tmp_path, tables)).splitlines()


def test_a_list_of_one_dataset_is_the_table(tmp_path, tables):
    assert read(tmp_path, {**tables, "dataset": [tables["dataset"]]}) == read(tmp_path, tables)


def test_changes_of_one_of_several_datasets(tmp_path, tables):
    two = several(tables, {"folder": "more"})
    changed = read(tmp_path, two, "dataset.2.repeats=3", "dataset.1.fps=24", "dataset.2.drop_captions=0.5")
    assert [source.repeats for source in changed.dataset] == [1, 3]
    assert [source.fps for source in changed.dataset] == [24, 16]
    assert [source.drop_captions for source in changed.dataset] == [None, 0.5]
    assert read(tmp_path, tables, "repeats=2", "dataset.1.fps=24").dataset[0].repeats == 2
    for change in ("repeats=3", "dataset.repeats=3"):
        with pytest.raises(ConfigError, match=r"there are 2 datasets; say which, such as dataset\.2\.repeats=3"):
            read(tmp_path, two, change)
    with pytest.raises(ConfigError, match="there are 2 datasets, 1 to 2, and '3' is none of them"):
        read(tmp_path, two, "dataset.3.repeats=3")
    with pytest.raises(ConfigError, match="there is one dataset, and '2' is none of them"):
        read(tmp_path, tables, "dataset.2.repeats=3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "x", "repets": 1}, r"job\.toml\.dataset\.2 has the unknown field 'repets'"),
        ({"repeats": 1}, r"job\.toml\.dataset\.2 lacks the field 'folder'"),
        ({"folder": "x", "loss_weight": 0.0}, "loss_weight must be above 0, got 0"),
        ({"folder": "x", "drop_captions": 2.0}, "drop_captions must be at most 1"),
        ({"folder": "x", "more_sizes": "512 768"}, "more_sizes has the entry '512 768', which is no size"),
        (
            {"folder": "x", "more_sizes": "512, 700"},
            r"a side of more_sizes \(700\) is 700, but Wan needs a multiple of 16",
        ),
        ({"folder": "x", "more_sizes": "99984"}, r"a side of more_sizes \(99984\) is 99984, but 16384 are the most"),
        (3, r"job\.toml\.dataset\.2 must be an object with named fields"),
    ],
)
def test_mistakes_in_one_of_several_datasets_are_named(tmp_path, tables, change, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, several(tables, change))


def test_a_recipe_has_a_dataset_that_is_on(tmp_path, tables):
    for datasets in ([], [{**tables["dataset"], "enabled": False}]):
        with pytest.raises(ConfigError, match="the recipe has no dataset that is enabled"):
            read(tmp_path, {**tables, "dataset": datasets})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 3}, "job.toml has the unknown field 'sed'"),
        ({"optimizer": {"lr": 3}}, "job.toml.optimizer has the unknown field 'lr'"),
        ({"loop": {"steps": "many"}}, r"job.toml.loop.steps is 'many'; it must be a whole number"),
        ({"low": {"optimizer": {"lr": 3}}}, r"\[low\].optimizer has the unknown field 'lr'"),
        ({"low": {"optimizer": 3}}, r"\[low\].optimizer is 3; it must be a group"),
        ({"timesteps": {"sigma_min": 0.5}}, "the window comes from the stage and 'boundary'"),
        ({"models": {"vae": "v", "text_encoder": "t"}}, "models names nothing to train"),
        ({"models": {"vae": "v", "text_encoder": "t", "single": "a", "low": "b"}}, "has single and an expert"),
        ({"name": "a/b"}, "name is 'a/b', which holds '/'"),
        ({"lora": {"low": "../x"}}, r"lora.low is '../x'"),
        ({"epochs": -1, "loop": {}}, "epochs must be 0"),
        ({"dataset": {"folder": "x", "width": 33}}, "width is 33, but Wan needs a multiple of 16"),
    ],
)
def test_mistakes_are_named(tmp_path, tables, change, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, {**tables, **change})


def test_settings_of_an_expert_that_is_not_trained_are_refused(tmp_path, tables):
    del tables["models"]["low"]
    with pytest.raises(ConfigError, match=r"\[low\] has settings, but models.low is not given"):
        read(tmp_path, {**tables, "low": {"precision": "fp32"}})


def test_changes(tables):
    changed = apply_changes(tables, ["loop.seed=7", "name=a b", "high.optimizer.learning_rate=1e-3", "lora.high=07"])
    assert changed["loop"] == {"steps": 4, "seed": 7}
    assert (changed["name"], changed["lora"]["high"]) == ("a b", "07")
    assert changed["high"] == {"optimizer": {"learning_rate": 1e-3}}
    assert tables["loop"] == {"steps": 4}
    short = apply_changes(
        tables, ["seed=7", "high.learning_rate=1e-3", "optimizer=adamw8bit", "low.epochs=3", "work=w"]
    )
    assert short["loop"] == {"steps": 4, "seed": 7}
    assert short["high"] == {"optimizer": {"learning_rate": 1e-3}}
    assert (short["optimizer"]["name"], short["low"], short["work"]) == ("adamw8bit", {"epochs": 3}, "w")
    assert "epochs" not in apply_changes({**tables, "epochs": 3}, ["steps=9"])
    with pytest.raises(ConfigError, match=r"'loop\.seed' is no change"):
        apply_changes(tables, ["loop.seed"])
    with pytest.raises(ConfigError, match="name is a value, not a group"):
        apply_changes(tables, ["name.x=1"])


def test_a_change_of_a_text_or_a_list_is_one_whatever_it_looks_like(tables):
    """--set preview_skip_layers=9: blocks are a text, and 9 alone is one too."""
    changed = apply_changes(
        {**tables, "dataset": [{"folder": "a"}, {"folder": "b"}]},
        [
            "preview_skip_layers=9", "high.adapter_include=1e3", "name=2026", "dataset.2.trigger_word=1234",
            "dataset.1.more_sizes=768", 'author="7"', "targets=ffn, self_attn", 'low.targets=["ffn"]', "rank=4",
        ],
    )  # fmt: skip
    assert changed["previews"] == {"skip_layers": "9"}
    assert changed["high"] == {"adapter": {"include": "1e3"}}
    assert (changed["name"], changed["author"]) == ("2026", "7")
    assert [one.get("trigger_word", one.get("more_sizes")) for one in changed["dataset"]] == ["768", "1234"]
    assert changed["adapter"] == {**tables["adapter"], "targets": ["ffn", "self_attn"], "rank": 4}
    assert changed["low"] == {"adapter": {"targets": ["ffn"]}}
    assert apply_changes(tables, ["name=null"])["name"] is None  # which is refused, and not the name "null"


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml does not exist: name a recipe"):
        read_tables(tmp_path / "nothing.toml")
    (tmp_path / "a.toml").write_bytes('name = "Müller"'.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"a\.toml is no text in UTF-8: if it is a recipe, save it in that encoding"):
        read_tables(tmp_path / "a.toml")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json is not valid JSON"):
        read_tables(tmp_path / "a.json")
    (tmp_path / "twice.json").write_text('{"loop": {"steps": 3}, "loop": {"seed": 7}}')
    with pytest.raises(ConfigError, match=r"twice\.json is not valid JSON: a name occurs twice, 'loop'"):
        read_tables(tmp_path / "twice.json")
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a table"):
        read_tables(tmp_path / "b.json")
    pytest.importorskip("tomllib")
    (tmp_path / "c.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"c\.toml is not valid TOML"):
        read_tables(tmp_path / "c.toml")


def test_the_example_is_the_recipe_of_the_guide():
    """docs/job.toml as it stands: the preset, which another test holds against the guide, and nothing else."""
    pytest.importorskip("tomllib")
    path = PACK / "docs" / "job.toml"
    recipe = read_recipe(path)
    chosen = preset("wan2.2-t2v-images")
    assert recipe.high == recipe.low == {}
    wanted = settings_from_names({**chosen.model, **chosen.train, "epochs": chosen.epochs})
    assert recipe.settings("high") == recipe.settings("low") == wanted
    assert recipe.dataset[0].options == DatasetOptions(**chosen.dataset)
    assert {stage: getattr(recipe.lora, stage) for stage in ("high", "low")} == {
        "high": "WAN2.2-HighNoise_my_lora",
        "low": "WAN2.2-LowNoise_my_lora",
    }


def test_the_example_shows_every_setting_with_its_default():
    """Its commented lines are valid too, and nothing that a recipe can have is missing."""
    pytest.importorskip("tomllib")
    path = PACK / "docs" / "job.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    values = [line[1:] if re.match(r"#(\w+ = |\[)", line) else line for line in lines]
    tables = __import__("tomllib").loads("\n".join(values))
    shown = {f"{name}.{key}" if isinstance(value, dict) else name for name, value in tables.items() for key in
             (value if isinstance(value, dict) else [""])}  # fmt: skip
    assert shown - {"low.optimizer"} == {item.place for item in all_options(Recipe) if item.in_recipe}
    del tables["epochs"]
    del tables["models"]["single"]
    assert recipe_from_tables(tables, path.parent).low == {"optimizer": {"learning_rate": 2e-4}}
    defaults = read_tables(path) | {name: value for name, value in tables.items() if name not in read_tables(path)}
    assert (
        from_dict(StageSettings, {name: defaults[name] for name in ("memory", "previews", "loss")}) == StageSettings()
    )


def test_files_that_an_adapter_begins_with_are_relative_to_the_recipe(tmp_path, tables):
    tables["adapter"] = {"start_from": "mine.safetensors", "kind": "lokr", "lokr_full": True}
    tables["high"] = {"adapter": {"merge_into_base": "old/fast.safetensors"}}
    found = read(tmp_path, tables)
    assert found.settings("low").adapter.start_from == str(tmp_path / "mine.safetensors")
    high = found.settings("high").adapter
    assert (high.merge_into_base, high.kind) == (str(tmp_path / "old" / "fast.safetensors"), "lokr")
    assert read(tmp_path, tables, "adapter=loha", "high.rank=7").settings("high").adapter.kind == "loha"

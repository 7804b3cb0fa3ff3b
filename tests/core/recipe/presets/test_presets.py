"""Presets against the nodes whose inputs they fill, and the numbers of the guides they come from."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.flow.sigmas import sample_sigmas
from wan_train.core.recipe.presets import PRESETS, node_values, of_card, preset, variants
from wan_train.core.recipe.presets.fits import CARDS, fit
from wan_train.core.recipe.presets.page import recipes_page
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.settings.stage import StageSettings, settings_from_names, stage_options
from wan_train.core.train.build import job_warnings
from wan_train.core.train.schedule import learning_rate_scale
from wan_train.tests.core.importers.given import import_files
from wan_train.tests.core.recipe.presets.guides import MUSUBI_FILES, SIMPLETUNER_FILES

OTHER_INPUTS = {"dit", "latents", "text", "stage", "lora_name", "vae", "other_dit"}


def inputs_of(node):
    return {item.id: item for item in node.define_schema().inputs}


@pytest.fixture(scope="module")
def nodes(comfy):
    from wan_train.nodes import data_nodes, model_nodes, train_nodes

    return data_nodes.DatasetFromFolder, model_nodes.LoadWanDiT, train_nodes.TrainLoRAStage


def test_every_setting_of_the_node_has_its_place(nodes):
    assert inputs_of(nodes[2]).keys() - OTHER_INPUTS <= stage_options().keys()


def test_the_nodes_defaults_are_the_settings_defaults(nodes):
    inputs = inputs_of(nodes[2])
    defaults = {name: inputs[name].default for name in inputs.keys() - OTHER_INPUTS}
    assert settings_from_names(defaults) == StageSettings()


@pytest.mark.parametrize("name", PRESETS)
def test_values_fit_into_the_widgets(nodes, name):
    chosen = preset(name)
    chosen_values = node_values(chosen)
    for node, values in ((node, chosen_values[node.define_schema().node_id]) for node in nodes):
        inputs = inputs_of(node)
        for key, value in values.items():
            widget = inputs[key]
            assert type(value) is type(widget.default)
            if getattr(widget, "options", None):
                assert value in widget.options
            if getattr(widget, "min", None) is not None:
                assert widget.min <= value <= widget.max
    assert ("steps" in chosen.train) != bool(chosen.epochs)


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_says_where_it_comes_from(name):
    chosen = preset(name)
    given = {label for values in chosen.values().values() for label in values}
    given -= {"epochs"} if not chosen.epochs else set()
    assert set(chosen.why) == given
    assert all(why.endswith(".") for why in chosen.why.values())


def test_the_recipe_of_the_guide(tables, tmp_path):
    values = preset("wan2.2-t2v-images").tables()
    dataset = {**values.pop("dataset"), "folder": tables["dataset"]["folder"]}
    recipe = recipe_from_tables({"name": "x", "models": tables["models"], "dataset": dataset, **values}, tmp_path)
    high = recipe.settings("high")
    assert (recipe.dataset[0].width, recipe.dataset[0].height, high.epochs, high.loop.seed) == (960, 960, 100, 5)
    assert (high.optimizer.learning_rate, high.optimizer.weight_decay, high.optimizer.max_grad_norm) == (3e-4, 0.1, 0)
    # power 8: at a quarter of the run a tenth of the learning rate is left; the floor is 5e-5 of it
    scales = [learning_rate_scale(step, 1000, high.schedule) for step in (0, 100, 250, 1000)]
    assert scales == pytest.approx([1.0, 0.43, 0.10, 5e-5], rel=0.01)
    # shift 1.0 with its shape preserved: a logit-normal, cut to the window
    window = dataclasses.replace(high.timesteps, sigma_min=0.875)
    sigmas = sample_sigmas(window, seed=5, first_draw=0, count=400)
    normal = torch.sigmoid(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    cut = normal[normal >= 0.875]
    assert sigmas.min() >= 0.875
    assert sigmas.mean().item() == pytest.approx(cut.mean().item(), abs=0.004)


def test_unknown_names():
    with pytest.raises(ConfigError, match="there is no recipe 'x': choose one of wan2"):
        preset("x")
    with pytest.raises(ConfigError, match="unknown field 'lr'"):
        settings_from_names({"lr": 1})
    with pytest.raises(ConfigError, match="targets is 'all'"):
        settings_from_names({"targets": "all"})


def tables_of(name, tables):
    chosen = preset(name)
    models = tables["models"]
    if chosen.family == "t2v-1.3b":
        models = {"single": models["low"], "vae": models["vae"], "text_encoder": models["text_encoder"]}
    values = chosen.tables()
    dataset = {**values.pop("dataset"), "folder": tables["dataset"]["folder"], "trigger_word": "ohwx"}
    return {"name": "x", "models": models, "dataset": dataset, **values}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_without_a_setting_that_has_no_effect(name, tables, tmp_path, job):
    recipe = recipe_from_tables(tables_of(name, tables), tmp_path)
    for stage in recipe.models.stages:
        settings = recipe.settings(stage)
        trained = {group: getattr(settings, group) for group, _ in job.groups()}
        told = job_warnings(dataclasses.replace(job, stage=stage, **trained), settings)
        told = [sentence for sentence in told if "class word" not in sentence]  # which the small samples lack
        if name == "simpletuner-quickstart":  # as the guide has it: its warm-up is as long as its run
            assert len(told) == 1
            assert "warmup_steps (400000) is not shorter than the run" in told.pop()
        assert told == []


def test_one_preset_after_another_gives_the_second():
    every = {node: set(values) for node, values in node_values(preset("motion-24gb")).items()}
    for name, chosen in PRESETS.items():
        values = node_values(chosen)
        assert {node: set(found) for node, found in values.items() if node != "CacheLatents"} == every, name
        assert all(values[node].items() >= own.items() for node, own in chosen.values().items())
    assert node_values(preset("motion-24gb"))["TrainLoRAStage"]["lr_schedule"] == "constant"
    assert (
        node_values(preset("motion-24gb"))["TrainLoRAStage"]["weight_decay"] == StageSettings().optimizer.weight_decay
    )


def imported_groups(recipe, stage):
    """What an import makes of the training and the dataset, without what belongs to the user."""
    settings = dataclasses.asdict(recipe.settings(stage))
    dataset = dataclasses.asdict(recipe.dataset[0])
    return {
        **settings,
        "dataset": {name: value for name, value in dataset.items() if name not in ("folder", "trigger_word")},
    }


def differences(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: found for name in one for key, found in differences(one[name], other[name], f"{path}.{name}").items()
        }
    return {} if one == other else {path.lstrip("."): (one, other)}


@pytest.mark.parametrize("stage", ["high", "low"])
def test_the_preset_is_what_the_import_makes_of_the_guides_commands(stage, tables, tmp_path):
    """Every option of AI_Characters' two commands, read by the importer of musubi-tuner's files."""
    guide = import_files(MUSUBI_FILES).recipe
    own = recipe_from_tables(tables_of("wan2.2-t2v-images", tables), tmp_path)
    assert differences(imported_groups(guide, stage), imported_groups(own, stage)) == {
        "precision": ("fp8", "bf16"),  # nearer to the model; the plan swaps blocks
        "dataset.num_frames": (1, 33),  # of clips: the guide's folder has none
        "saving.every_epochs": (100, 0),  # one at the end alone: here there are checkpoints to go on from
    }


def test_the_quick_start_is_what_the_import_makes_of_its_files(tables, tmp_path):
    guide = import_files(SIMPLETUNER_FILES).recipe
    own = recipe_from_tables(tables_of("simpletuner-quickstart", tables), tmp_path)
    assert differences(imported_groups(guide, "single"), imported_groups(own, "single")) == {}
    assert (own.previews.skip_start, own.previews.skip_stop, own.previews.sampler) == (0.0, 1.0, "uni_pc")


def recommended(kind, gb):
    """Numbers of section 6 of the guide to AI-Toolkit, and of the sections that it names."""
    large = gb == 80
    return {
        "character": {"steps": range(1000, 1501), "timestep_bias": "balanced", "output_preservation": 0.0,
                      "rank": range(16, 33), "num_frames": (41, 81) if large else (1, 33, 41)},
        "style": {"steps": range(750, 1251), "timestep_bias": "favor_high_noise", "output_preservation": 1.0,
                  "rank": range(16, 33), "num_frames": (41, 81) if large else (1, 33, 41)},
        "motion": {"steps": range(750, 1251), "timestep_bias": "balanced", "output_preservation": 0.0,
                   "rank": (16,), "num_frames": (17, 33) if gb < 48 else range(41, 82)},
        "effect": {"steps": range(750, 1251), "timestep_bias": "favor_high_noise", "output_preservation": 0.0,
                   "rank": (16,), "num_frames": (17, 33) if gb < 48 else range(41, 82)},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("gb", CARDS)
@pytest.mark.parametrize("kind", ["character", "style", "motion", "effect"])
def test_the_numbers_of_the_guide(kind, gb):
    chosen = preset(f"{kind}-{gb}gb")
    values = {**chosen.dataset, **chosen.train}
    for name, wanted in recommended(kind, gb).items():
        assert values[name] in wanted if isinstance(wanted, (range, tuple)) else values[name] == wanted, name
    assert (values["learning_rate"], values["batch_size"], values["gradient_accumulation"]) == (1e-4, 1, 1)
    assert (values["checkpoint_every"], values["keep_last"], values["caption_dropout"]) == (250, 6, 0.05)
    assert (values["timestep_sampling"], values["loss"], values["frame_sampling"]) == ("uniform", "mse", "even")
    sides = {values["width"], *map(int, filter(None, [values.get("more_sizes", "")]))}
    assert sides <= ({512} if gb < 48 else {512, 768} if gb == 48 or kind in ("motion", "effect") else {768, 1024})
    assert chosen.conditioning == ("first frame" if kind == "effect" else "none")


@pytest.mark.parametrize("name", PRESETS)
def test_it_fits_the_card_that_it_is_made_for(name):
    chosen = preset(name)
    for card_gb in [chosen.card_gb] if chosen.card_gb else list(CARDS):
        found = fit(chosen, card_gb)
        assert found.choice is not None
        assert found.choice.vram < found.card.free
        assert found.choice.ram < found.card.free_ram


def test_the_page_shows_every_preset_on_its_cards():
    rows = [line.split(" | ")[:2] for line in recipes_page().splitlines()]
    for name, chosen in PRESETS.items():
        for card_gb in [chosen.card_gb] if chosen.card_gb else list(CARDS):
            assert any(row[0] == f"| `{name}`" and row[1].startswith(CARDS[card_gb].name) for row in rows), name


def test_the_one_for_the_card():
    assert of_card("motion", 23.6) == "motion-24gb"  # a card sold with 24 GB has 23.6 of 2**30 bytes
    assert of_card("motion", 31.4) == "motion-24gb"
    assert of_card("style", 139.0) == "style-80gb"
    assert of_card("character", 8.0) == of_card("character", None) == "character-12gb"
    assert all(one.card_gb < other.card_gb for one, other in pairwise(variants("effect").values()))
    with pytest.raises(ConfigError, match="there is no recipe 'x': choose one of wan2"):
        of_card("x", 24)

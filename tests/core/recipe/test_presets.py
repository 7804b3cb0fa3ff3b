"""Presets against the nodes whose inputs they fill, and the numbers of the guide they come from."""

import dataclasses

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.flow.sigmas import sample_sigmas
from wan_train.core.recipe.presets import PRESETS, preset
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.settings.stage import StageSettings, settings_from_names, stage_options
from wan_train.core.train.schedule import learning_rate_scale

OTHER_INPUTS = {"dit", "latents", "text", "stage", "lora_name", "vae"}


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
    for node, values in zip(nodes, (chosen.dataset, chosen.model, chosen.train), strict=True):
        inputs = inputs_of(node)
        for key, value in values.items():
            widget = inputs[key]
            assert type(value) is type(widget.default)
            if getattr(widget, "options", None):
                assert value in widget.options
            if getattr(widget, "min", None) is not None:
                assert widget.min <= value <= widget.max
    assert ("steps" in chosen.train) != bool(chosen.epochs)


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
    with pytest.raises(ConfigError, match="there is no preset 'x': choose one of wan2"):
        preset("x")
    with pytest.raises(ConfigError, match="unknown field 'lr'"):
        settings_from_names({"lr": 1})
    with pytest.raises(ConfigError, match="targets is 'all'"):
        settings_from_names({"targets": "all"})

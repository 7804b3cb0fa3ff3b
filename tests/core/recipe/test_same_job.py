"""The graph and the command line make the same job of equal settings, so each goes on with the other's run."""

import dataclasses
from pathlib import Path

import pytest
from wan_train.core.cli.display import Display
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, plan, scan
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.core.settings.stage import settings_from_names
from wan_train.core.train.build import steps_of_epochs
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.host.graphs import TRAIN


@pytest.fixture
def node_side(comfy):
    """The host's encoders and the node's way to a job."""
    import comfy.utils
    from wan_train.nodes import host, sockets, train_nodes

    class NodeSide:
        def caches(self, recipe):
            dataset = scan_folder(recipe.dataset[0].folder, recipe.dataset[0].options)
            weights = comfy.utils.load_torch_file(recipe.models.vae, safe_load=True)
            video = host.HostVideoEncoder(comfy.sd.VAE(sd=weights))
            text = host.HostTextEncoder(host.load_umt5(Path(recipe.models.text_encoder)))
            store = Store(recipe.cache_path)
            return cache_latents(dataset, video, store)[0], cache_text(dataset.captions, text, store)[0]

        def job(self, recipe, caches, stage, settings):
            info = inspect(Path(getattr(recipe.models, stage)))
            settings = {**settings, "stage": f"{stage} noise"}
            return train_nodes.stage_job(
                sockets.DitHandle(info, {"precision": "auto", "checkpointing": True}), *caches, settings
            )

    return NodeSide()


SETTINGS = {
    **TRAIN,
    "targets": "attention",
    "dropout": 0.1,
    "timestep_sampling": "shift",
    "lr_schedule": "polynomial",
    "lr_power": 8.0,
    "boundary": 0.0,
    "steps": 6,
    "device": "cpu",
}


def as_tables(tables):
    settings = settings_from_names({k: v for k, v in SETTINGS.items() if k != "lora_name"})
    groups = {f.name: dataclasses.asdict(getattr(settings, f.name)) for f in dataclasses.fields(settings)
              if dataclasses.is_dataclass(getattr(settings, f.name))}  # fmt: skip
    return {**tables, **groups, "boundary": settings.boundary, "device": settings.device}


def test_equal_jobs_in_equal_folders(node_side, tables, tmp_path):
    recipe = recipe_from_tables(as_tables(tables), tmp_path)
    caches = node_side.caches(recipe)
    before = sorted(recipe.cache_path.rglob("*.safetensors"))
    display = Display()
    made = jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, display), display))
    assert sorted(recipe.cache_path.rglob("*.safetensors")) == before  # what the graph encoded is found
    for stage in ("high", "low"):
        graph = node_side.job(recipe, caches, stage, SETTINGS)
        assert made[stage] == graph
        assert made[stage].key == graph.key
    assert made["high"].key != made["low"].key

    graph_job = dataclasses.replace(made["high"], device="cuda:1")
    folder = RunFolder(recipe.runs_path / f"an older name_high_{graph_job.key}")
    folder.path.mkdir(parents=True)
    folder.write_job(graph_job)
    assert plan(made["high"], recipe.runs_path, "high").folder == folder
    assert plan(made["low"], recipe.runs_path, "low").folder.path.name == f"shapes_low_{made['low'].key}"
    other_name = dataclasses.replace(made["high"], name="other")
    assert plan(other_name, recipe.runs_path, "high").folder.path.name == f"other_high_{graph_job.key}"


def test_epochs_are_those_of_the_batches(tables, tmp_path):
    """3 pictures with batches of 2 are 2 batches an epoch; with 3 batches an update, 5 epochs are 10/3 updates."""
    tables |= {"loop": {"batch_size": 2, "gradient_accumulation": 3}, "epochs": 5}
    recipe = recipe_from_tables(tables, tmp_path)
    display = Display()
    made = jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, display), display))
    assert made["high"].loop.steps == 4
    assert steps_of_epochs(3, made["high"].data, made["high"].loop) == 2

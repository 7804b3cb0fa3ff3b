"""Names that are not UTF-8, as zips from Windows leave them on Linux: left out with a note, or carried."""

import dataclasses
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.cli.display import Display
from wan_train.core.cli.main import main
from wan_train.core.errors import DatasetError
from wan_train.core.recipe.pipeline import cache, prepare_recipe, scan
from wan_train.core.recipe.recipe import recipe_from_tables

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such names")
ODD = os.fsdecode(b"caf\xe9")


def encoded(recipe):
    """The recipe, with all that it needs encoded by this process, so that no other has to be started for it."""
    silent = Display(io.StringIO())
    cache(recipe, scan(recipe, silent, report=False), silent)
    return recipe


def test_a_file_of_such_a_name_is_told_and_the_others_are_trained_on(recipe, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(recipe.dataset[0].folder, folder)
    first = next(folder.glob("*.png"))
    shutil.copy(first, folder / f"{ODD}.png")
    (folder / f"{ODD}.txt").write_text("a dog")
    (folder / ODD).mkdir()
    shutil.copy(first, folder / ODD / "a.png")
    odd = dataclasses.replace(recipe, dataset=(dataclasses.replace(recipe.dataset[0], folder=str(folder)),))
    said = io.StringIO()
    planned = prepare_recipe(encoded(odd), ["cpu"], Display(said))
    said.getvalue().encode()
    assert "- 3 files: skipped: its name is not UTF-8" in said.getvalue()
    assert "caf\\xe9" in said.getvalue()
    names = [sample.name for sample in planned[0].job.data.samples]
    assert len(names) == len(scan(recipe, Display(io.StringIO()), report=False).samples)


def test_a_work_folder_of_such_a_name_carries_caches_and_runs(recipe, tmp_path):
    odd = dataclasses.replace(recipe, work=str(tmp_path / ODD))
    planned = prepare_recipe(odd, ["cpu"], Display(io.StringIO()))
    assert planned[0].job.key == prepare_recipe(encoded(recipe), ["cpu"], Display(io.StringIO()))[0].job.key
    assert all(Path(sample.latents_path).is_file() for sample in planned[0].job.data.samples)


def test_models_and_recipes_of_such_names(recipe, tables, tmp_path, capfd):
    folder = tmp_path / ODD
    folder.mkdir()
    models = {}
    for slot in ("high", "low", "vae", "text_encoder"):
        models[slot] = str(shutil.copy(getattr(recipe.models, slot), folder / f"{slot}{ODD}.safetensors"))
    changed = {**tables, "models": models, "work": str(tmp_path / "work")}
    assert prepare_recipe(recipe_from_tables(changed, tmp_path), ["cpu"], Display(io.StringIO()))
    path = folder / f"{ODD}.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main(["cache", str(path)]) == 0
    assert main(["cache", str(path.with_suffix(".toml"))]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_dataset_folder_of_such_a_name_is_refused_in_a_sentence(recipe, tables, tmp_path, caplog):
    folder = tmp_path / ODD
    shutil.copytree(recipe.dataset[0].folder, folder)
    changed = {**tables, "dataset": {**tables["dataset"], "folder": str(folder)}}
    with pytest.raises(DatasetError, match=r"caf\\udce9' is not UTF-8: rename it"):
        scan(recipe_from_tables(changed, tmp_path), Display(io.StringIO()))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main(["cache", str(path)]) == 1
    assert main(["scan", str(folder)]) == 1
    assert [("is not UTF-8: rename it" in r.getMessage(), r.levelname) for r in caplog.records] == [(True, "ERROR")] * 2


def test_a_missing_tokenizer_is_told_before_anything_is_scanned(recipe, tmp_path):
    """The official text encoder, which has none inside."""
    from safetensors.torch import load_file
    from wan_train.core.errors import ModelFileError

    state = load_file(recipe.models.text_encoder)
    folder = tmp_path / "encoder"
    folder.mkdir()
    path = folder / "bare.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name != "spiece_model"}, path)
    bare = dataclasses.replace(recipe, models=dataclasses.replace(recipe.models, text_encoder=str(path)))
    said = io.StringIO()
    with pytest.raises(ModelFileError, match=r"has no tokenizer inside.*name it as the tokenizer"):
        prepare_recipe(bare, ["cpu"], Display(said))
    assert said.getvalue() == ""
    named = dataclasses.replace(bare, models=dataclasses.replace(bare.models, tokenizer=recipe.models.text_encoder))
    keys = [prepare_recipe(encoded(made), ["cpu"], Display(said))[0].job.key for made in (named, recipe)]
    assert keys[0] == keys[1]
    assert torch.is_tensor(state["spiece_model"])

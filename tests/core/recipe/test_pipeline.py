"""From a recipe to jobs, in this process: what is refused before anything is loaded, and what is not loaded twice."""

import dataclasses
import io
import json
import os

import pytest
from wan_train.core import disk
from wan_train.core.cli.display import Display
from wan_train.core.cli.find_models import find_model, model_folders
from wan_train.core.errors import ConfigError, DatasetError, ModelFileError, RunError
from wan_train.core.launch.progress import NoDisplay
from wan_train.core.recipe.encoders import NotEncodedError
from wan_train.core.recipe.jobs import check_job, holds_job, plan_existing
from wan_train.core.recipe.pipeline import cache, cache_elsewhere, check_recipe, jobs, prepare_recipe, scan
from wan_train.core.recipe.recipe import ModelFiles, recipe_from_tables
from wan_train.core.settings.job import job_to_json
from wan_train.core.settings.previews import SamplePromptOptions
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def said():
    return io.StringIO()


@pytest.fixture
def made(recipe, said):
    """Both jobs, with everything cached."""
    display = Display(said)
    return jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, display), display))


def with_models(recipe, **files):
    return dataclasses.replace(recipe, models=ModelFiles(**{**dataclasses.asdict(recipe.models), **files}))


def test_wrong_files_are_refused_by_name(recipe):
    files = recipe.models
    with pytest.raises(
        ModelFileError, match=r"mini_umt5.safetensors' is a umT5 text encoder, but the VAE of mini_high"
    ):
        check_recipe(with_models(recipe, vae=files.text_encoder))
    with pytest.raises(
        ModelFileError, match=r"mini_vae.safetensors' is a Wan 2.1 VAE, but a umT5 text encoder is needed"
    ):
        check_recipe(with_models(recipe, text_encoder=files.vae))
    with pytest.raises(ModelFileError, match=r"a Wan 2\.1 VAE, which goes into"):
        check_recipe(with_models(recipe, low=files.vae))
    with pytest.raises(ModelFileError, match=r"nothing\.safetensors' does not exist"):
        check_recipe(with_models(recipe, vae="nothing.safetensors"))
    with pytest.raises(ConfigError, match="is a text-to-video model: leave conditioning out"):
        check_recipe(dataclasses.replace(recipe, conditioning="first frame"))
    with pytest.raises(ConfigError, match="the device 'gpu1' is not known"):
        check_recipe(dataclasses.replace(recipe, high={"device": "gpu1"}))
    assert not list(recipe.cache_path.rglob("*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tread": {"routes": "1 to 99: 0.5"}}, "tread_routes has a route from block 1 to block 99"),
        ({"crepa": {"weight": 0.5, "block": 99, "encoder": "dino"}}, "crepa_block is 99"),
        ({"crepa": {"weight": 0.5, "block": 1}}, "crepa_weight is 0.5, but crepa_encoder is empty"),
        ({"crepa": {"weight": 0.5, "block": 1, "encoder": "nowhere"}}, "crepa_encoder '.*nowhere' does not exist"),
        ({"previews": {"every": 2, "skip_layers": "99"}}, "preview_skip_layers names block 99"),
    ],
)
def test_blocks_and_files_that_are_not_there_are_refused_before_anything_is_encoded(tables, tmp_path, change, message):
    recipe = recipe_from_tables({**tables, **change}, tmp_path)
    with pytest.raises(ConfigError, match=message):
        check_recipe(recipe)


def test_prompts_that_are_none_are_refused_before_anything_is_encoded(recipe, said):
    broken = dataclasses.replace(recipe, samples=SamplePromptOptions(prompts="a cat --w 17"))
    dataset = scan(recipe, Display(said), report=False)
    with pytest.raises(ConfigError, match="width must be a multiple of 16"):
        cache(broken, dataset, Display(said))
    assert "loading" not in said.getvalue()


def test_encoders_are_loaded_once_and_when_something_changed(recipe, said, made):
    assert said.getvalue().count("loading ") == 2
    silent = Display(io.StringIO())
    dataset = scan(recipe, silent, report=False)
    again = cache(recipe, dataset, silent, load=False)
    assert jobs(recipe, check_recipe(recipe), again) == made
    os.utime(recipe.models.vae, (0, 0))  # the file may hold something else now
    with pytest.raises(NotEncodedError):
        cache(recipe, dataset, silent, load=False)
    os.utime(recipe.models.vae)


def test_no_process_is_started_for_what_is_cached(recipe, made, capfd):
    dataset = scan(recipe, Display(io.StringIO()), report=False)
    assert cache_elsewhere(recipe, dataset, ["cpu"]).text.by_caption.keys() == {*dataset.captions, ""}
    assert "captions are in" not in capfd.readouterr().err


def test_a_failed_process_is_told(recipe):
    dataset = scan(recipe, Display(io.StringIO()), report=False)
    broken = dataclasses.replace(recipe, dataset=(dataclasses.replace(recipe.dataset[0], trigger_word=""),))
    with pytest.raises(RunError, match=r"encoding ended early \(code 1\)"):
        cache_elsewhere(broken, dataset, ["cpu"])  # its captions have [trigger], so its scan fails


def test_models_are_found_by_their_content(models, tmp_path, monkeypatch):
    found = {slot: find_model(slot, [models]).name for slot in ("high", "low", "vae", "text_encoder")}
    assert found == {
        "high": "mini_high_noise.safetensors",
        "low": "mini_low_noise.safetensors",
        "vae": "mini_vae.safetensors",
        "text_encoder": "mini_umt5.safetensors",
    }
    assert find_model("vae", [tmp_path]) is None
    monkeypatch.setenv("COMFYUI_PATH", str(models.parent))
    assert model_folders()[0] == models
    assert model_folders(tmp_path) == [tmp_path]


def test_a_job_file_gets_a_run_folder(made, tmp_path):
    path = tmp_path / "copied.json"
    path.write_text(job_to_json(made["low"]), encoding="utf-8")
    assert holds_job(path)
    planned = plan_existing(path, tmp_path / "work", [])
    assert planned.folder.path == tmp_path / "work" / "runs" / f"shapes_low_{made['low'].key}"
    assert planned.job == made["low"]
    planned.folder.path.mkdir(exist_ok=True)
    planned.folder.write_job(planned.job)
    assert plan_existing(planned.folder.path, None, ["cpu:1"]).job.device == "auto"
    assert plan_existing(planned.folder.job_path, None, []) == plan_existing(planned.folder.path, None, [])
    with pytest.raises(ConfigError, match=r"a folder for work, .* has no effect"):
        plan_existing(planned.folder.path, tmp_path, [])


def test_what_is_no_job_is_a_recipe(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "x"}))
    assert not holds_job(tmp_path / "recipe.json")
    (tmp_path / "recipe.toml").write_text('name = "x"')
    assert not holds_job(tmp_path / "recipe.toml")
    with pytest.raises(RunError, match=r"is .* a run folder"):
        plan_existing(tmp_path, None, [])


def test_a_job_without_its_cache_or_model_is_refused(made, recipe):
    job = made["high"]
    gone = dataclasses.replace(job.data.samples[0], latents_path=str(recipe.cache_path / "gone"))
    data = dataclasses.replace(job.data, samples=(gone, *job.data.samples[1:]))
    with pytest.raises(DatasetError, match=r"cached of image_00.png is not at .*gone: bring the cache"):
        check_job(dataclasses.replace(job, data=data))
    with pytest.raises(ConfigError, match="its content changed"):
        check_job(dataclasses.replace(job, model=dataclasses.replace(job.model, identity="0" * 32)))


def test_a_disk_that_is_too_small_is_told_before_anything_is_started(made, recipe, tmp_path, monkeypatch):
    """By the checks of a recipe and of a job alike; a run that is finished takes nothing more."""
    path = tmp_path / "job.json"
    path.write_text(job_to_json(made["low"]), encoding="utf-8")
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    with pytest.raises(RunError, match=r"would take .* MB, and 0.001 MB are free"):
        prepare_recipe(recipe, ["cpu"], NoDisplay())
    with pytest.raises(RunError, match=r"would take .* MB, and 0.001 MB are free"):
        plan_existing(path, None, [])
    monkeypatch.setattr(RunFolder, "finished_lora", lambda _folder, _steps: path)
    assert plan_existing(path, None, []).job == made["low"]

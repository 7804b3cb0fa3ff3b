"""The demo's job by the command line."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from wan_train.core.cli.display import Display
from wan_train.core.cli.main import main
from wan_train.core.recipe.pipeline import prepare_recipe
from wan_train.core.recipe.recipe import read_recipe
from wan_train.tools import demo, headless_demo
from wan_train.tools.comfyui import SetupError, UnreachableError
from wan_train.tools.examples import demo_sketch
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.lessons import train_here

PACK = Path(__file__).resolve().parents[2]


def inputs_of(class_type):
    """Inputs of the demo's nodes of a class, without links."""
    return [
        {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        for node in demo_sketch().prompt.values()
        if node["class_type"] == class_type
    ]


def test_the_recipe_says_what_the_graph_says(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(headless_demo.recipe(PACK, tmp_path)), encoding="utf-8")
    recipe = read_recipe(path)
    (dataset,), (high, low), dits = map(inputs_of, ("DatasetFromFolder", "TrainLoRAStage", "LoadWanDiT"))
    previews = {"preview_every", "preview_steps", "preview_cfg", "preview_shift"}  # for the page
    assert set(high) - {"stage", "lora_name"} - previews == set(headless_demo.PLACES)
    assert {**high, "stage": "low noise"} == low
    assert (recipe.name, recipe.loop.steps, recipe.schedule.kind) == (
        high["lora_name"],
        high["steps"],
        high["lr_schedule"],
    )
    assert (recipe.adapter.rank, recipe.loop.batch_size) == (high["rank"], high["batch_size"])
    assert recipe.optimizer.learning_rate == high["learning_rate"]
    assert {**vars(recipe.dataset[0]), "folder": dataset["folder"]} == {**vars(recipe.dataset[0]), **dataset}
    assert recipe.memory.checkpointing is False
    assert [dit["checkpointing"] for dit in dits] == ["off", "off"]


def test_the_recipe_names_what_comes_with_the_pack(tmp_path):
    tables = headless_demo.recipe(PACK, tmp_path)
    files = Files()
    models = {"high": files.dit("high"), "low": files.dit("low"), "vae": files.vae, "text_encoder": files.text_encoder}
    assert tables["models"] == {name: str(path) for name, path in models.items()}
    assert all(path.is_file() for path in models.values())
    assert list(Path(tables["dataset"]["folder"]).glob("*.mp4"))


def in_this_process(arguments):
    """The command line, which finds its work done: here, where the packages are loaded once, and not by its processes."""
    if arguments[0] == "train":
        assert main(["cache", *arguments[1:]]) == 0
        recipe = read_recipe(Path(arguments[1]), arguments[3::2])
        for planned in prepare_recipe(recipe, ["cpu"], Display(io.StringIO())):
            planned.folder.write_job(planned.job)
            train_here(planned.folder)
    return main(arguments)


@pytest.mark.grid(2, "the demo without ComfyUI")
def test_clips_become_a_pair_of_loras_and_a_video(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    for path in (PACK / "nano" / "datasets" / "dive").glob("dive_00.*"):
        shutil.copy(path, tmp_path / "clips")
    changes = ("loop.steps=1", "loop.batch_size=1", f"dataset.folder={tmp_path / 'clips'}", "dataset.held_out=0")
    headless_demo.run(in_this_process, PACK, tmp_path / "base", changes=changes)
    names = sorted(path.name for path in (tmp_path / "base" / "models" / "loras").iterdir())
    assert names == ["demo_dive_high_noise.safetensors", "demo_dive_low_noise.safetensors"]
    video = tmp_path / "base" / "output" / "video"
    assert sorted(path.name for path in video.iterdir()) == ["demo_dive.mp4", "demo_dive.png"]
    assert f"Without and with the LoRA: {video / 'demo_dive.mp4'}" in capsys.readouterr().out


def test_a_command_is_a_process_of_the_python_given(capfd):
    wantrain = headless_demo.command_line(Path(sys.executable), PACK)
    assert wantrain(["--help"]) == 0
    assert "usage: wantrain" in capfd.readouterr().out
    assert wantrain(["nonsense"]) == 2


def test_a_command_that_fails_ends_the_demo(tmp_path):
    with pytest.raises(SetupError, match="`wantrain train` failed; it has said why"):
        headless_demo.run(lambda _: 1, PACK, tmp_path)


def test_where_no_comfyui_can_be_had_it_says_so(tmp_path, monkeypatch, capsys):
    def unreachable(_):
        raise UnreachableError("No ComfyUI was found.")

    monkeypatch.setattr(demo, "find_host", lambda *_: None)
    monkeypatch.setattr(demo, "fetch_host", unreachable)
    assert demo.find_or_fetch(tmp_path) is None
    assert capsys.readouterr().out.startswith("No ComfyUI was found. Until then the same job runs without ComfyUI")


def test_the_lora_that_was_written_last_is_shown(tmp_path):
    for time, name in enumerate(("demo_dive_high_noise", "demo_dive_low_noise", "demo_dive_v2_high_noise"), 10):
        (tmp_path / f"{name}.safetensors").touch()
        os.utime(tmp_path / f"{name}.safetensors", (time, time))
    assert headless_demo.newest_lora(tmp_path, "high").stem == "demo_dive_v2_high_noise"
    assert headless_demo.newest_lora(tmp_path, "low").stem == "demo_dive_low_noise"

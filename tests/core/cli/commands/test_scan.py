"""`wantrain scan` of a folder and of a recipe with several datasets."""

import json

import pytest
from wan_train.core.cli.main import main


@pytest.fixture
def scan(capsys):
    def run(*arguments):
        assert main(["scan", *map(str, arguments)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_a_folder(scan, pictures):
    lines = scan(pictures, "--set", "trigger_word=shp", "--set", "repeats=2")
    assert lines[0] == "0 clips, 3 images: 6 samples an epoch"
    assert lines[2] == "an epoch uses each sample once, times its repeats: 6 steps with batch_size 1"


def test_a_recipe_with_the_same_folder_twice(scan, tables, tmp_path):
    tables["dataset"] = [tables["dataset"], {**tables["dataset"], "width": 64}]
    del tables["loop"]
    (tmp_path / "job.json").write_text(json.dumps(tables))
    lines = scan(tmp_path / "job.json", "--set", "dataset.2.repeats=3", "--set", "epochs=10")
    assert [line.split(":")[0] for line in lines[:3]] == ["shapes (1)", "shapes (2)", "together"]
    assert lines[2] == "together: 0 clips, 6 images: 12 samples an epoch"
    assert lines[4].endswith("12 steps with batch_size 1; 120 steps are 10 epochs; high and low each, 240 steps in all")


@pytest.mark.parametrize("command", ["scan", "look"])
def test_a_path_that_is_no_dataset(command, pictures, tmp_path, caplog):
    picture = next(path for path in pictures.iterdir() if path.suffix == ".png")
    assert main([command, str(picture)]) == 1
    assert caplog.messages[-1] == f"{picture} is an image or a clip: give the folder that it lies in."
    assert main([command, str(tmp_path / "gone")]) == 1
    assert caplog.messages[-1].endswith("gone does not exist: give a dataset folder, or a recipe (.toml, .json).")
    (tmp_path / "recipe.txt").write_text("name = ")
    assert main([command, str(tmp_path / "recipe.txt")]) == 1
    assert "is not valid TXT" in caplog.messages[-1]

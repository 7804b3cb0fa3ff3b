"""`wantrain import`: the report is printed, the recipe and the workflow are written, and nothing is written over."""

import json

import pytest
from wan_train.core.cli.main import main
from wan_train.core.recipe.recipe import read_recipe
from wan_train.tests.core.importers.given import SETUPS

pytest.importorskip("tomllib")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A setup's files, and an empty folder that is the present one."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    paths = []
    for name, text in SETUPS["musubi"].items():
        (tmp_path / "theirs" / name).write_text(text, encoding="utf-8")
        paths.append(str(tmp_path / "theirs" / name))
    return paths


def test_a_recipe_and_a_workflow(files, tmp_path, capsys):
    assert main(["import", *files, "--workflow", "wf.json"]) == 0
    told = capsys.readouterr().out
    assert "musubi-tuner, Wan 2.2 T2V A14B" in told
    assert "wrote WAN2.2_mine.toml and wf.json" in told
    assert read_recipe(tmp_path / "ours" / "WAN2.2_mine.toml").epochs == 100
    assert json.loads((tmp_path / "ours" / "wf.json").read_text(encoding="utf-8"))["version"] == 0.4


def test_nothing_is_written_over(files, tmp_path, caplog):
    (tmp_path / "ours" / "mine.json").write_text("mine", encoding="utf-8")
    assert main(["import", *files, "--recipe", "mine.json"]) == 1
    assert "mine.json exists" in caplog.text
    assert (tmp_path / "ours" / "mine.json").read_text(encoding="utf-8") == "mine"


def test_what_is_to_do_stands_in_the_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(SETUPS["aitoolkit"]["job.yaml"], encoding="utf-8")
    pytest.importorskip("yaml")
    assert main(["import", "job.yaml"]) == 0
    assert "To do before it can be trained" in capsys.readouterr().out
    text = (tmp_path / "wan22_orbit_v1.toml").read_text(encoding="utf-8")
    assert "# To do: models.vae" in text


def test_no_setup_is_one_sentence(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    assert main(["import", str(tmp_path / "a.txt")]) == 1
    assert "a.txt is no setup of a trainer that is known" in caplog.text
    assert "Traceback" not in caplog.text

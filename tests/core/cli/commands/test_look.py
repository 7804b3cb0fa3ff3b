"""`wantrain look`: a page in a file with its pictures beside it, and refusals before anything is read."""

import json
import re

import pytest
from wan_train.core.cli.main import main
from wan_train.tests.core.look.material import textured, write


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    for number in range(3):
        write(place, f"{number}.png", textured(1, number), f"picture </script> {number}")
    write(place, "clip.mp4", textured(9, 7), "a clip")
    return place


def look(folder, out, *more):
    return main(["look", str(folder), "--out", str(out), "--set", "width=96", "--set", "height=96", *more])


def held(page):
    """The data in a page."""
    (data,) = re.findall(r"<script>const DATA = (.*?);</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(data)


def test_the_page_holds_every_sample_and_shows_only(folder, tmp_path, capsys):
    out = tmp_path / "pages" / "look.html"
    assert look(folder, out, "--set", "num_frames=9") == 0
    data = held(out)
    assert [sample["name"] for sample in data["dataset"]["samples"]] == ["0.png", "1.png", "2.png", "clip.mp4"]
    assert data["dataset"]["samples"][0]["captions"][0]["text"] == "picture </script> 0"
    assert data["dataset"]["counts_exactly"] is False
    pictures = {item["key"] for event in data["events"] for item in event.get("items", [])}
    assert {path.stem for path in (tmp_path / "pages" / "look_files").glob("*.webp")} == pictures
    assert data["dataset"]["files"] == "look_files"
    assert capsys.readouterr().out.endswith(f"{out}\n")
    text = out.read_text(encoding="utf-8")
    assert "This page was written to a file and only shows." in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)


def test_pictures_are_made_once_and_old_ones_removed(folder, tmp_path):
    out = tmp_path / "look.html"
    look(folder, out, "--set", "num_frames=9")
    files = tmp_path / "look_files"
    (files / "mine.webp").write_bytes(b"kept")
    times = {path.name: path.stat().st_mtime_ns for path in files.iterdir() if path.name != "files.json"}
    (folder / "0.png").unlink()
    look(folder, out, "--set", "num_frames=9")
    after = {path.name: path.stat().st_mtime_ns for path in files.iterdir() if path.name != "files.json"}
    assert set(times) > set(after)
    assert len(times) - len(after) == 2  # a strip and what was measured
    assert all(times[name] == time for name, time in after.items())
    assert (files / "mine.webp").exists()


def test_a_page_in_the_dataset_is_refused(folder, caplog):
    assert look(folder, folder / "look.html") == 1
    assert "lies in a dataset folder" in caplog.text
    assert look(folder, folder / "sub" / "look.html") == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".mp4", ".png", ".png", ".png"] + [".txt"] * 4


def test_another_ending_is_refused(folder, tmp_path, caplog):
    assert look(folder, tmp_path / "look.txt") == 1
    assert "does not end with .html" in caplog.text


def test_a_recipe_counts_with_its_own_tokenizer(tables, tmp_path):
    """The miniature's text encoder has its tokenizer inside."""
    recipe, out = tmp_path / "recipe.json", tmp_path / "look.html"
    recipe.write_text(json.dumps(tables))
    assert main(["look", str(recipe), "--out", str(out)]) == 0
    dataset = held(out)["dataset"]
    assert dataset["counts_exactly"] is True
    assert not dataset["samples"][0]["captions"][0]["is_estimate"]

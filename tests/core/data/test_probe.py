import hashlib
import json
import os
import re
import shutil

import pytest
from wan_train.core.data.probe import Probe, ProbeIndex, probe_file
from wan_train.core.errors import RunError


def test_a_clip_and_an_image(tmp_path, make):
    clip = make.clip(tmp_path / "a.MP4", 20)
    found = probe_file(clip)
    assert (found.kind, found.width, found.height, len(found.times_us), found.problem) == ("video", 64, 48, 20, "")
    assert found.end_us == 1_250_000
    assert found.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    image = probe_file(make.image(tmp_path / "a.png"))
    assert (image.kind, image.times_us, image.end_us) == ("image", (0,), 0)
    assert probe_file(make.animation(tmp_path / "a.gif")).kind == "video"
    assert probe_file(make.image(tmp_path / "still.gif")).kind == "image"


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("a.png", lambda p, _: p.write_bytes(b""), "the file is empty"),
        ("a.jpg", lambda p, _: p.write_text("hello"), "not an image of a known format"),
        ("a.mp4", lambda p, _: p.write_text("hello, this is no clip"), "the clip cannot be decoded"),
        ("a.png", lambda p, make: make.image(p, (40, 12)), "it is 40x12 pixels, smaller than 16 on a side"),
        ("a.mkv", lambda p, make: make.cut(make.clip(p), 0.7), "the file is cut off: .* bytes are missing"),
        ("a.mp4", lambda p, _: p.mkdir(), "it is not a plain file"),
    ],
)
def test_problems_are_told_not_raised(tmp_path, make, name, write, problem):
    path = tmp_path / name
    write(path, make)
    assert re.search(problem, probe_file(path).problem)


def test_the_index_remembers_until_the_file_changes(tmp_path, make):
    image = make.image(tmp_path / "a.png")
    index_path = tmp_path / "deep" / "index.json"
    index = ProbeIndex(index_path)
    assert index.get(image) is None
    found = probe_file(image)
    index.put(image, found)
    index.save(tmp_path)
    assert ProbeIndex(index_path).get(image) == found
    os.utime(image, ns=(1, 1))
    assert ProbeIndex(index_path).get(image) is None


def test_problems_are_remembered_but_unreadable_files_are_not(tmp_path, make):
    index = ProbeIndex(tmp_path / "index.json")
    bad, gone = make.cut(make.image(tmp_path / "a.png"), 0.5), make.image(tmp_path / "b.png")
    index.put(bad, probe_file(bad))
    index.put(gone, Probe(problem="it cannot be read (no permission)"))
    index.save(tmp_path)
    fresh = ProbeIndex(tmp_path / "index.json")
    assert "cannot be decoded" in fresh.get(bad).problem
    assert fresh.get(gone) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0, "files": {}}', '{"version": 1, "files": []}'])
def test_a_damaged_or_older_index_is_ignored_and_replaced(tmp_path, make, text):
    image, index_path = make.image(tmp_path / "a.png"), tmp_path / "index.json"
    index_path.write_text(text)
    index = ProbeIndex(index_path)
    assert index.get(image) is None
    index.put(image, probe_file(image))
    index.save(tmp_path)
    assert ProbeIndex(index_path).get(image) is not None


def test_a_damaged_entry_is_ignored(tmp_path, make):
    image, index_path = make.image(tmp_path / "a.png"), tmp_path / "index.json"
    index = ProbeIndex(index_path)
    index.put(image, probe_file(image))
    index.save(tmp_path)
    data = json.loads(index_path.read_text())
    data["files"][str(image)]["probe"]["width"] = "wide"
    index_path.write_text(json.dumps(data))
    assert ProbeIndex(index_path).get(image) is None


def test_two_indexes_on_one_file_keep_each_others_entries(tmp_path, make):
    one, two = ProbeIndex(tmp_path / "index.json"), ProbeIndex(tmp_path / "index.json")
    a, b = make.image(tmp_path / "a.png"), make.image(tmp_path / "b.png")
    one.put(a, probe_file(a))
    two.put(b, probe_file(b))
    one.save(tmp_path)
    two.save(tmp_path)
    fresh = ProbeIndex(tmp_path / "index.json")
    assert fresh.get(a)
    assert fresh.get(b)


def test_files_that_are_gone_are_forgotten(tmp_path, make):
    index_path = tmp_path / "index.json"
    a, b = make.image(tmp_path / "a.png"), make.image(tmp_path / "b.png")
    index = ProbeIndex(index_path)
    index.put(a, probe_file(a))
    index.save(tmp_path)
    a.unlink()
    index.put(b, probe_file(b))
    index.save(tmp_path)
    assert list(json.loads(index_path.read_text())["files"]) == [str(b)]


def test_an_index_that_cannot_be_written_leaves_no_partial_file(tmp_path, make):
    image = make.image(tmp_path / "a.png")
    index = ProbeIndex(tmp_path / "index.json")
    index.put(image, probe_file(image))
    (tmp_path / "index.json").mkdir()
    (tmp_path / "index.json" / "x").touch()
    with pytest.raises(RunError, match="cannot be written"):
        index.save(tmp_path)
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_two_files_of_equal_size_and_time_that_change_places(tmp_path, make):
    """Only their places on the disk tell them apart: a picture without compression has the size of its pixels."""
    first, second, index_path = tmp_path / "a.bmp", tmp_path / "b.bmp", tmp_path / "index.json"
    make.image(first, colour=(200, 0, 0))
    make.image(second, colour=(0, 0, 200))
    for path in (first, second):
        os.utime(path, ns=(10**18, 10**18))
    index = ProbeIndex(index_path)
    probes = {path: probe_file(path) for path in (first, second)}
    for path, probe in probes.items():
        index.put(path, probe)
    index.save(tmp_path)
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "c.bmp")
    second.rename(first)
    (tmp_path / "c.bmp").rename(second)
    again = ProbeIndex(index_path)
    assert again.get(first) is None
    assert again.get(second) is None
    assert probe_file(first).sha256 == probes[second].sha256


@pytest.mark.skipif(os.name == "nt", reason="Windows tells when a file was made, not when it was last changed")
def test_a_copy_with_the_same_size_and_time_over_another_file(tmp_path, make, await_tick):
    first, second, index_path = tmp_path / "a.bmp", tmp_path / "b.bmp", tmp_path / "index.json"
    make.image(first, colour=(200, 0, 0))
    make.image(second, colour=(0, 0, 200))
    for path in (first, second):
        os.utime(path, ns=(10**18, 10**18))
    index = ProbeIndex(index_path)
    index.put(first, probe_file(first))
    index.save(tmp_path)
    await_tick(first)
    shutil.copy2(second, first)  # into the same file, with the time of the other
    assert first.stat().st_mtime_ns == 10**18
    assert ProbeIndex(index_path).get(first) is None
    assert probe_file(first).sha256 == probe_file(second).sha256

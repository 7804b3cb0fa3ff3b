"""Captions are edited in their files: whole or not at all, and never over what somebody else wrote meanwhile."""

import contextlib
from pathlib import Path

import pytest
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError, RunError
from wan_train.core.look.captions import CaptionFiles, write_caption
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.look.material import textured, write

OPTIONS = DatasetOptions(width=64, height=64, num_frames=1)


@pytest.fixture
def picture(tmp_path) -> Path:
    return write(tmp_path / "set", "a.png", textured(1), "the old caption")


def written(picture, options=OPTIONS):
    return CaptionFiles(options, [picture.parent]).of(picture)


def edit(picture, text, state=None, options=OPTIONS):
    found = written(picture, options)
    write_caption(found, text, found.state if state is None else state)


def captions(picture):
    return [sample.file.caption for sample in scan_folder(picture.parent, OPTIONS).samples]


def test_what_is_edited_is_what_is_trained(picture):
    edit(picture, "  the new\ncaption, with é ")
    assert captions(picture) == ["the new caption, with é"]
    assert picture.with_suffix(".txt").read_bytes() == "the new\ncaption, with é\n".encode()
    assert written(picture).text == "the new\ncaption, with é"  # its lines stay


def test_a_caption_is_made_where_there_is_none(picture):
    picture.with_suffix(".txt").unlink()
    assert (written(picture).text, written(picture).state) == ("", "")
    edit(picture, "a first one")
    assert captions(picture) == ["a first one"]


@pytest.mark.parametrize("name", ["a.TXT", "A.txt"])
def test_the_file_that_the_scan_reads_is_the_one_that_is_edited(picture, name):
    picture.with_suffix(".txt").rename(picture.with_name(name))
    assert written(picture).text == "the old caption"
    edit(picture, "new")
    assert sorted(path.name for path in picture.parent.iterdir()) == sorted([name, "a.png"])
    assert captions(picture) == ["new"]


def test_a_change_by_others_is_not_written_over(picture):
    before = written(picture)
    picture.with_suffix(".txt").write_text("by somebody else")
    with pytest.raises(DatasetError, match="changed by another program"):
        edit(picture, "mine", before.state)
    assert captions(picture) == ["by somebody else"]


def test_another_encoding_is_read_and_becomes_utf_8(picture):
    picture.with_suffix(".txt").write_bytes("caf\xe9 au lait".encode("cp1252"))
    assert written(picture).text == "café au lait"
    edit(picture, "café noir")
    assert picture.with_suffix(".txt").read_bytes() == "café noir\n".encode()


@pytest.mark.parametrize("text", ["x" * 99_000, "a\0b", "half \ud83d"])
def test_what_is_no_caption_is_refused_and_the_old_one_stays(picture, text):
    with pytest.raises(DatasetError):
        edit(picture, text)
    assert captions(picture) == ["the old caption"]


def test_a_full_disk_leaves_the_old_caption(small_disk):
    picture = write(small_disk / "set", "a.png", textured(1), "the old caption")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    with pytest.raises(RunError, match="the old caption is kept"):
        edit(picture, "new " * 10_000)
    assert picture.with_suffix(".txt").read_text() == "the old caption\n"


def test_a_link_that_leads_outside_is_not_followed(picture, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("not yours")
    picture.with_suffix(".txt").unlink()
    picture.with_suffix(".txt").symlink_to(outside)
    assert written(picture).text == ""
    with pytest.raises(DatasetError, match="leads outside"):
        edit(picture, "new")
    assert outside.read_text() == "not yours"


def test_a_link_inside_is_followed(picture):
    target = picture.with_name("shared.txt")
    picture.with_suffix(".txt").rename(target)
    picture.with_suffix(".txt").symlink_to(target)
    edit(picture, "new")
    assert target.read_text() == "new\n"
    assert picture.with_suffix(".txt").is_symlink()


def test_other_kinds_of_caption_files_say_where_they_are_edited(picture):
    options = DatasetOptions(width=64, height=64, caption_extension=".json")
    picture.with_suffix(".json").write_text('{"caption": "x"}')
    assert "edit a.json" in written(picture, options).locked
    with pytest.raises(DatasetError, match="are not edited here"):
        edit(picture, "new", options=options)

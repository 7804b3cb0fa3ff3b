"""Captions of a folder by a model of the true format: resumable, and never over a person's text."""

import json

import pytest
from wan_train.core.captioning.folder import caption_folder
from wan_train.core.captioning.local_model import LocalModel
from wan_train.core.captioning.written import NAME
from wan_train.core.errors import DatasetError
from wan_train.core.settings.captioning import CaptioningOptions

PARTS = ["more/blue", "moves", "red"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return LocalModel(tiny_model, device="cpu")


def run(folder, model, **options):
    return caption_folder(folder, CaptioningOptions(**{"max_tokens": 12, "must_say": "zxq"} | options), lambda: model)


def texts_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.txt")}


def no_model():
    raise AssertionError("nothing is to do, so that no model is needed")


def test_each_file_without_a_caption_gets_one(dataset, model):
    done = run(dataset, model)
    assert sorted(done.written) == [f"{part}.txt" for part in PARTS]
    assert texts_of(dataset) == done.written
    assert all(text.startswith("zxq, ") for text in done.written.values())
    assert done.written["red.txt"] != done.written["more/blue.txt"]  # it looked at them


def test_several_at_once_say_the_same(dataset, model):
    one = run(dataset, model).written
    again = run(dataset, model, redo=True, batch_size=3)
    assert again.written == one


def test_the_second_time_nothing_is_loaded(dataset, model):
    before = run(dataset, model).written
    done = caption_folder(dataset, CaptioningOptions(), no_model)
    assert (done.written, done.kept) == ({}, 3)
    assert texts_of(dataset) == before


def test_a_persons_text_stays_also_with_redo(dataset, model):
    (dataset / "red.txt").write_text("my own words")
    run(dataset, model)
    (dataset / "moves.txt").write_text(texts_of(dataset)["moves.txt"] + " mended")
    before = texts_of(dataset)
    done = run(dataset, model, redo=True, must_say="other")
    assert list(done.written) == ["more/blue.txt"]
    assert texts_of(dataset) == before | {"more/blue.txt": done.written["more/blue.txt"]}
    assert done.written["more/blue.txt"].startswith("other, ")
    assert done.kept == 2


def test_what_a_person_writes_while_the_model_is_at_work_stays(dataset, model):
    def writes_too(done, _total, _name):
        if done == 1:
            (dataset / "red.txt").write_text("my own words")

    options = CaptioningOptions(max_tokens=12, must_say="zxq")
    done = caption_folder(dataset, options, lambda: model, on_file=writes_too)
    assert sorted(done.written) == ["more/blue.txt", "moves.txt"]
    assert texts_of(dataset) == done.written | {"red.txt": "my own words"}
    assert [str(note) for note in done.notes] == ["red.txt: skipped: somebody wrote it meanwhile, and it is left alone"]


def test_an_empty_caption_file_is_filled(dataset, model):
    (dataset / "red.txt").write_text(" \n")
    assert "red.txt" in run(dataset, model).written


def test_without_its_memory_every_text_is_a_persons(dataset, model):
    before = run(dataset, model).written
    (dataset / NAME).write_bytes(b'{"version": 1, "capt')
    done = run(dataset, model, redo=True, must_say="other")
    assert (done.written, done.kept) == ({}, 3)
    assert "is damaged" in str(done.notes[0])
    assert texts_of(dataset) == before


def test_a_stopped_one_goes_on_where_it_was(dataset, model):
    class StoppedError(Exception):
        pass

    def stop(done, total, name):
        raise StoppedError

    options = CaptioningOptions(max_tokens=12)
    with pytest.raises(StoppedError):
        caption_folder(dataset, options, lambda: model, on_file=stop)
    first = texts_of(dataset)
    assert len(first) == 1
    seen = []
    caption_folder(dataset, options, lambda: model, on_file=lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert texts_of(dataset).items() > first.items()


def test_a_text_that_was_remembered_and_not_written_leaves_the_old_one_ours(dataset, model):
    """As after a crash between the two."""
    run(dataset, model)
    memory = json.loads((dataset / NAME).read_text())
    memory["captions"]["red.txt"].append("0" * 64)
    (dataset / NAME).write_text(json.dumps(memory))
    assert "red.txt" in run(dataset, model, redo=True, must_say="other").written


def test_a_damaged_file_is_left_out_and_told(dataset, model):
    (dataset / "bad.png").write_bytes(b"nothing")
    done = run(dataset, model)
    assert len(done.written) == 3
    assert [str(note) for note in done.notes if "bad.png" in note.name]
    assert str(done) == "3 captions written, 1 noted"


def test_a_picture_and_a_clip_of_one_name_share_the_caption(dataset, model):
    (dataset / "red.mp4").write_bytes((dataset / "moves.mp4").read_bytes())
    assert sorted(run(dataset, model).written) == [f"{part}.txt" for part in PARTS]


def test_the_mask_of_a_file_is_not_described(dataset, model):
    (dataset / "red-masklabel.png").write_bytes((dataset / "red.png").read_bytes())
    assert sorted(run(dataset, model).written) == [f"{part}.txt" for part in PARTS]


def test_what_has_no_effect_is_told(dataset, model):
    class OneByOne:
        batch_size = 1
        describe = model.describe

    done = run(dataset, OneByOne(), batch_size=2)
    assert len(done.written) == 3
    assert "batch_size 2 has no effect" in str(done.notes[0])


def test_a_folder_without_media_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no images or clips"):
        caption_folder(tmp_path, CaptioningOptions(), no_model)

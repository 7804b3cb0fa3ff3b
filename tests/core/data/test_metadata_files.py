"""One file with the captions of many: as the field writes them."""

import json
import os
from dataclasses import replace

import pytest
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError
from wan_train.core.settings.dataset import DatasetOptions

OPTIONS = DatasetOptions(caption_source="metadata", width=64, height=48)


@pytest.fixture
def pictures(folder, make):
    (folder / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png"):
        make.image(folder / name, colour=(len(name), ord(name[-5]), 9))
    return folder


def captions_of(dataset):
    return {s.file.name: (s.file.caption, *s.file.more_captions) for s in dataset.samples}


def notes_of(dataset):
    return [str(note) for note in dataset.notes]


PLAIN = {"a.png": ("a dog",), "b.png": ("a cat",), "sub/c.png": ("a cow",)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (  # Hugging Face's image folder
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "a dog"}\n{"file_name": "b.png", "text": "a cat"}\n\n'
            '{"file_name": "sub/c.png", "text": "a cow"}\n',
        ),
        ("metadata.csv", "file_name,text\na.png,a dog\nb.png,a cat\nsub/c.png,a cow\n"),
        ("captions.csv", 'file;caption\r\na.png;a dog\r\n"b.png";"a\r\ncat"\r\nsub/c.png;a cow\r\n'),
        ("captions.json", '{"a.png": "a dog", "b.png": ["a cat"], "sub/c.png": "a cow"}'),  # diffusion-pipe
        ("metadata.json", '{"a": {"caption": "a dog"}, "b": {"tags": "a cat"}, "sub/c": {"caption": "a cow", "tags": "x"}}'),
        ("dataset.json", '[{"path": ".\\\\a.png", "caption": "a dog"}, {"path": "./b.png", "prompt": "a cat"}, '
         '{"path": "sub\\\\c.png", "captions": ["a cow"]}]'),
    ],
)  # fmt: skip
def test_the_fields_forms(pictures, name, text):
    (pictures / name).write_text(text, encoding="utf-8", newline="")
    dataset = scan_folder(pictures, OPTIONS)
    assert captions_of(dataset) == PLAIN
    assert notes_of(dataset) == [f"{name}: note: has the captions of 3 files"]


def test_paths_of_this_and_of_another_machine(pictures, tmp_path):
    """As musubi-tuner's JSONL has them."""
    lines = [
        {"image_path": str(pictures / "a.png"), "caption": "a dog"},
        {"image_path": "/workspace/data/b.png", "caption": "a cat"},
        {"image_path": "D:\\data\\c.png", "caption": "a cow"},
        {"image_path": "/workspace/data/gone.png", "caption": "nothing"},
    ]
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, lines)))
    dataset = scan_folder(pictures, replace(OPTIONS, metadata_file=str(listed)))
    assert captions_of(dataset) == PLAIN
    assert notes_of(dataset) == [
        "list.jsonl: note: has the captions of 3 files",
        "list.jsonl: note: 2 entries (/workspace/data/b.png, D:\\data\\c.png) found by their names alone: nothing is at their "
        "paths",
        "list.jsonl: note: 1 entry (/workspace/data/gone.png) ignored: no such image or clip is in the folder",
    ]


def test_a_name_may_be_spelled_as_windows_and_the_mac_let_it(tmp_path, make):
    """In another case, and with letters in the Mac's form."""
    for name in ("Clip.PNG", "Mu\u0308ll.png"):
        make.image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,text\nclip.png,one\nM\u00fcll.png,two\n", encoding="utf-8")
    dataset = scan_folder(tmp_path, DatasetOptions(width=64, height=48, caption_source="metadata"))
    assert {sample.file.name: sample.file.caption for sample in dataset.samples} == {
        "Clip.PNG": "one",
        "Mu\u0308ll.png": "two",
    }


def test_a_name_that_fits_two_files_fits_none(pictures, make):
    make.image(pictures / "sub" / "b.png", colour=(1, 2, 3))
    (pictures / "captions.json").write_text('{"/data/b.png": "a cat", "a.png": "a dog"}')
    dataset = scan_folder(pictures, OPTIONS)
    assert captions_of(dataset) == {"a.png": ("a dog",)}
    assert "captions.json: note: 1 entry (/data/b.png) ignored: no such image or clip is in the folder" in notes_of(
        dataset
    )
    assert "b.png: dropped: captions.json has no entry for it, and no default caption is set" in notes_of(dataset)


def test_several_captions_of_a_file(pictures):
    lines = [
        '{"file_name": "a.png", "caption": "a dog"}',
        '{"file_name": "a.png", "captions": ["it runs", "a dog", ""]}',
    ]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    dataset = scan_folder(pictures, DatasetOptions(caption_source="metadata", trigger_word="ohwx", default_caption="x"))
    assert captions_of(dataset) == {
        "a.png": ("ohwx, a dog", "ohwx, it runs"),
        "b.png": ("ohwx, x",),
        "sub/c.png": ("ohwx, x",),
    }
    assert dataset.captions == ("ohwx, a dog", "ohwx, it runs", "ohwx, x")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\n{"file_name"', r"l, line 2: it is not valid JSON"),
        ("metadata.jsonl", b'{"id": 1, "text": "x"}', r"line 1: it names no file: .* \(its fields: id, text\)"),
        ("metadata.jsonl", b'{"file_name": "a.png", "label": 3}', "line 1: it has no caption: give one as caption"),
        ("metadata.jsonl", b'{"file_name": "a.png", "caption": {"en": 3}}', "line 1: its caption is .*, which is no text"),
        ("metadata.jsonl", b'["a.png", "x"]', "line 1: it must be an object with a file's name and its caption"),
        ("captions.json", b'"x"', "holds neither a table of names with captions nor a list of entries"),
        ("captions.json", b"[" * 100_000, "captions.json: it is not valid JSON"),
        ("captions.csv", b"a.png,a dog\n", "The first line of .* must name its columns, .* it is 'a.png,a dog'"),
        ("captions.json", b"\x89PNG\r\n", "it is no text file but a PNG picture"),
    ],
)  # fmt: skip
def test_what_is_no_metadata_is_refused_with_its_place(pictures, name, data, told):
    (pictures / name).write_bytes(data)
    with pytest.raises(DatasetError, match=told):
        scan_folder(pictures, OPTIONS)


def test_none_or_two_metadata_files_are_refused(pictures):
    with pytest.raises(
        DatasetError, match=r"has no metadata\.jsonl, .* name the file that holds the captions in metadata_file"
    ):
        scan_folder(pictures, OPTIONS)
    with pytest.raises(DatasetError, match=r"metadata_file is x\.jsonl, and there is no such file"):
        scan_folder(pictures, DatasetOptions(caption_source="metadata", metadata_file="x.jsonl"))
    for name in ("captions.json", "metadata.jsonl"):
        (pictures / name).write_text('{"file_name": "a.png", "caption": "x"}')
    with pytest.raises(DatasetError, match=r"captions\.json and metadata\.jsonl: say in metadata_file which one"):
        scan_folder(pictures, OPTIONS)


def test_a_metadata_file_that_is_not_used_is_told(pictures):
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "x"}')
    with pytest.raises(DatasetError, match=r"set caption_source to 'metadata' to take them from metadata\.jsonl"):
        scan_folder(pictures, DatasetOptions())
    notes = notes_of(scan_folder(pictures, DatasetOptions(default_caption="x", width=64, height=48)))
    assert notes == ["metadata.jsonl: note: ignored: to take captions from it, set caption_source to metadata"]


def test_a_graph_reads_no_metadata_from_elsewhere(pictures, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"file_name": "set/a.png", "caption": "a dog"}')
    options = DatasetOptions(caption_source="metadata", metadata_file="../list.jsonl")
    with pytest.raises(DatasetError, match="leads outside the dataset folders"):
        scan_folder(pictures, options, within=[])
    assert captions_of(scan_folder(pictures, options, within=[tmp_path])) == {"a.png": ("a dog",)}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_no_disk_has(pictures):
    (pictures / "captions.json").write_text('{"a\\u0000.png": "x", "\\ud800.png": "y", "a.png": "a dog"}')
    dataset = scan_folder(pictures, OPTIONS)
    assert captions_of(dataset) == {"a.png": ("a dog",)}
    assert "\n".join(notes_of(dataset)).encode()  # it can be printed


def test_the_file_that_is_read_is_not_called_ignored(tmp_path, make):
    make.image(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.png", "caption": "x"}')
    for given in ("list.jsonl", "./list.jsonl", "sub/../list.jsonl"):
        options = DatasetOptions(caption_source="metadata", metadata_file=given)
        (tmp_path / "sub").mkdir(exist_ok=True)
        told = [str(note) for note in scan_folder(tmp_path, options).notes]
        assert [note for note in told if note.startswith("list.jsonl")] == [
            "list.jsonl: note: has the captions of 1 file"
        ], given

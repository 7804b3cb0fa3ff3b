import pytest
from wan_train.core.data.captions import apply_trigger, assign_captions, read_captions
from wan_train.core.errors import ConfigError, DatasetError
from wan_train.core.settings.dataset import DatasetOptions


@pytest.mark.parametrize(
    ("data", "text", "told"),
    [
        ("caf\u00e9  on\n\n a  hill \r\n".encode(), "caf\u00e9 on a hill", ""),
        (b"\xef\xbb\xbf" + "caf\u00e9".encode(), "caf\u00e9", ""),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9", ""),
        ("caf\u00e9".encode("utf-32"), "caf\u00e9", ""),
        (b"\0\0\xfe\xff" + "caf\u00e9".encode("utf-32-be"), "caf\u00e9", ""),
        ("caf\u00e9 on a hill".encode("utf-16-le"), "caf\u00e9 on a hill", "has no mark and was read as UTF-16-LE"),
        ("caf\u00e9 on a hill".encode("utf-16-be"), "caf\u00e9 on a hill", "has no mark and was read as UTF-16-BE"),
        ("caf\u00e9 on a hill".encode("utf-32-le"), "caf\u00e9 on a hill", "has no mark and was read as UTF-32-LE"),
        (b"a dog\0", "a dog", "holds letters of the value 0, which were left out"),
        (b"\0" * 64, "", "holds letters of the value 0, which were left out"),
        (b"\xff\xfe\x00", "\ufffd", ""),
        (
            "caf\u00e9 \u201cx\u201d".encode("cp1252"),
            "caf\u00e9 \u201cx\u201d",
            "is not UTF-8 and was read as Windows-1252: look at it, and save it as UTF-8",
        ),
    ],
)
def test_read_caption_knows_the_usual_encodings(tmp_path, data, text, told):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_captions(path, DatasetOptions()) == ([text] if text else [], told)


def test_a_caption_file_that_cannot_be_one_drops_its_clip_with_a_note(tmp_path):
    huge, folder, good = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    huge.write_bytes(b"x" * (2**20 + 1))
    folder.mkdir()
    good.write_text("a dog")
    sidecars = {"a.png": huge, "b.png": folder, "c.png": good, "d.png": tmp_path / "gone.txt"}
    captions, notes = assign_captions(list(sidecars), sidecars, DatasetOptions())
    assert captions == {"c.png": ("a dog",)}
    assert [str(note) for note in notes] == [
        "a.png: dropped: its caption file a.txt cannot be used: it has more than 1048576 bytes, far more than the model "
        "takes of a caption: shorten it, and no default caption is set",
        "b.png: dropped: its caption file b.txt cannot be used: it is not a plain file but a folder, pipe or device, "
        "and no default caption is set",
        "d.png: dropped: its caption file gone.txt cannot be used: it cannot be read (No such file or directory), "
        "and no default caption is set",
    ]
    captions, notes = assign_captions(["a.png"], sidecars, DatasetOptions(default_caption="x"))
    assert captions == {"a.png": ("x",)}
    assert "cannot be used" in notes[0].reason


@pytest.mark.parametrize(
    ("caption", "result"),
    [
        ("a dog", "ohwx, a dog"),
        ("[trigger] runs, [TRIGGER] jumps", "ohwx runs, ohwx jumps"),
        ("an ohwx dog", "an ohwx dog"),
        ("an ohwxy dog", "ohwx, an ohwxy dog"),
        ("", "ohwx"),
    ],
)
def test_trigger_word(caption, result):
    assert apply_trigger(caption, " ohwx ", "a.mp4") == result


def test_a_trigger_word_may_hold_regex_characters():
    assert apply_trigger(r"[trigger]", r"a\1(b", "x") == r"a\1(b"


def test_a_placeholder_without_a_trigger_word_is_refused():
    with pytest.raises(DatasetError, match=r"clip_1\.mp4 contains \[trigger\], but no trigger word is set"):
        apply_trigger("[trigger] dances", "", "clip_1.mp4")


def sidecar(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_no_caption_at_all_is_an_error():
    with pytest.raises(DatasetError, match=r"no captions: none of the 2 files has a caption .*write one \.txt file"):
        assign_captions(["a.mp4", "b.mp4"], {}, DatasetOptions())


def test_one_missing_caption_drops_that_file(tmp_path):
    captions, notes = assign_captions(["a.mp4", "b.mp4"], {"a.mp4": sidecar(tmp_path, "a.txt", "x")}, DatasetOptions())
    assert captions == {"a.mp4": ("x",)}
    assert [str(n) for n in notes] == [
        "b.mp4: dropped: no caption file b.txt next to it, and no default caption is set"
    ]


def test_one_missing_caption_is_refused_if_bad_files_are(tmp_path):
    options = DatasetOptions(bad_files="refuse")
    with pytest.raises(DatasetError, match=r"b\.mp4 cannot be used: no caption file b\.txt"):
        assign_captions(["a.mp4", "b.mp4"], {"a.mp4": sidecar(tmp_path, "a.txt", "x")}, options)


def test_an_empty_caption_file_counts_as_missing(tmp_path):
    sidecars = {"a.mp4": sidecar(tmp_path, "a.txt", "x"), "b.mp4": sidecar(tmp_path, "b.txt", " \n")}
    captions, notes = assign_captions(["a.mp4", "b.mp4"], sidecars, DatasetOptions())
    assert list(captions) == ["a.mp4"]
    assert "its caption file b.txt is empty" in notes[0].reason


def test_the_default_caption_fills_in_and_takes_the_trigger():
    options = DatasetOptions(default_caption="a [trigger] video", trigger_word="ohwx")
    assert assign_captions(["a.mp4"], {}, options) == ({"a.mp4": ("a ohwx video",)}, [])


def test_the_trigger_alone_is_a_caption_but_is_told():
    captions, notes = assign_captions(["a.mp4"], {}, DatasetOptions(trigger_word="ohwx"))
    assert captions == {"a.mp4": ("ohwx",)}
    assert notes[0].action == "note"
    assert "the trigger word alone" in notes[0].reason


def test_a_caption_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    captions, notes = assign_captions(["a.mp4"], {"a.mp4": path}, DatasetOptions())
    assert captions == {"a.mp4": ("caf\u00e9",)}
    assert "read as Windows-1252" in notes[0].reason


@pytest.mark.parametrize(
    ("name", "text", "captions"),
    [
        ("a.json", '{"caption": "a dog", "caption_short": "dog"}', ("a dog",)),
        ("a.json", '["a dog", " it\\n runs "]', ("a dog", "it runs")),
        ("a.json", '"a dog"', ("a dog",)),
        ("a.jsonl", '{"caption": "a dog"}\n\n"it runs"\n{"captions": ["a dog", "fast"]}', ("a dog", "it runs", "fast")),
        ("a.caption", '{"caption": "a dog"}', ('{"caption": "a dog"}',)),
    ],
)
def test_json_beside_a_file(tmp_path, name, text, captions):
    path = sidecar(tmp_path, name, text)
    options = DatasetOptions(caption_extension=path.suffix)
    assert assign_captions(["a.mp4"], {"a.mp4": path}, options) == ({"a.mp4": captions}, [])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"caption": ', "cannot be used: it is not valid JSON"),
        ('{"label": "x"}', "cannot be used: it has no caption: give one as caption (its fields: label)"),
        ('"\\ud800 dog"', "cannot be used: it holds halves of letters"),
        ('{"caption": ""}', "is empty"),
        ("{}", "cannot be used: it has no caption: give one as caption (it is empty)"),
    ],
)
def test_json_that_holds_no_caption_drops_its_file_with_a_note(tmp_path, text, told):
    path, good = sidecar(tmp_path, "a.json", text), sidecar(tmp_path, "b.json", '"x"')
    captions, notes = assign_captions(
        ["a.mp4", "b.mp4"], {"a.mp4": path, "b.mp4": good}, DatasetOptions(caption_extension="json")
    )
    assert captions == {"b.mp4": ("x",)}
    assert notes[0].action == "dropped"
    assert f"its caption file a.json {told}" in notes[0].reason


def test_lines_are_one_caption_or_several(tmp_path):
    sidecars = {"a.mp4": sidecar(tmp_path, "a.txt", "a dog\r\n\n  it  runs\na dog\n")}
    joined, _ = assign_captions(["a.mp4"], sidecars, DatasetOptions())
    separate, _ = assign_captions(["a.mp4"], sidecars, DatasetOptions(caption_lines="separate", trigger_word="ohwx"))
    assert joined == {"a.mp4": ("a dog it runs a dog",)}
    assert separate == {"a.mp4": ("ohwx, a dog", "ohwx, it runs")}


def test_captions_from_names():
    names = ["sub/a_red-fox  runs.mp4", "__.png"]
    captions, notes = assign_captions(names, {}, DatasetOptions(caption_source="filename", trigger_word="ohwx"))
    assert captions == {names[0]: ("ohwx, a red fox runs",), names[1]: ("ohwx",)}
    assert [str(note) for note in notes] == [
        "__.png: note: its name holds no words: the trigger word alone is its caption"
    ]


def test_the_trigger_word_alone(tmp_path):
    options = DatasetOptions(caption_source="trigger", trigger_word=" ohwx ", default_caption="x")
    assert assign_captions(["a.mp4", "b.mp4"], {}, options) == ({"a.mp4": ("ohwx",), "b.mp4": ("ohwx",)}, [])
    assert options.warnings() == ["default_caption has no effect with caption_source trigger."]
    with pytest.raises(ConfigError, match="no trigger word is set"):
        DatasetOptions(caption_source="trigger")


def test_variants_of_tags_stand_behind_the_caption_and_the_trigger_in_front(tmp_path):
    sidecars = {"a.mp4": sidecar(tmp_path, "a.txt", "dog, grass, running")}
    options = DatasetOptions(shuffle_tags=True, caption_variants=3, trigger_word="ohwx")
    captions, _ = assign_captions(["a.mp4"], sidecars, options)
    first, *further = captions["a.mp4"]
    assert first == "ohwx, dog, grass, running"
    assert len(further) == 3
    assert all(sorted(text.split(", ")[1:]) == ["dog", "grass", "running"] for text in further)
    assert all(text.startswith("ohwx, ") for text in further)


def test_a_regularization_set_is_not_told_to_set_a_trigger_word(tmp_path):
    sidecars = {"a.mp4": sidecar(tmp_path, "a.txt", "a [trigger] person")}
    with pytest.raises(DatasetError) as plain:
        assign_captions(["a.mp4"], sidecars, DatasetOptions())
    assert str(plain.value).endswith("no trigger word is set: set trigger_word.")
    with pytest.raises(DatasetError) as regular:
        assign_captions(["a.mp4"], sidecars, DatasetOptions(regularization=True))
    assert "a regularization set has none, so write a plain word" in str(regular.value)
    assert "set trigger_word" not in str(regular.value)


def test_tags_that_no_caption_has_are_told(tmp_path):
    sidecars = {"a.mp4": sidecar(tmp_path, "a.txt", "a dog, red, small")}
    told = {}
    for separator in (",", ";"):
        options = DatasetOptions(shuffle_tags=True, tag_separator=separator)
        captions, notes = assign_captions(["a.mp4"], sidecars, options)
        told[separator] = (len(captions["a.mp4"]) > 1, [note.reason for note in notes])
    assert told[","] == (True, [])
    assert told[";"] == (
        False,
        ["no caption is a list of tags with ';' between them: shuffle_tags and tag_dropout change nothing"],
    )

"""Files may be a stranger's: nothing in them runs, and sizes, depth and repetitions are limited."""

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.importers.texts import MAX_BYTES, MAX_FILES, SetupFile, check_sources, parse, read_sources


def test_marks_of_encodings_are_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / encoding).write_bytes('{"größe": 1}\r\n'.encode(encoding))
        (source,) = read_sources([tmp_path / encoding])
        assert source.text == '{"größe": 1}\n'


def test_what_an_older_windows_editor_wrote_is_read(tmp_path):
    (tmp_path / "train.bat").write_bytes("python train.py --dir C:\\Müller\r\n".encode("cp1252"))
    (source,) = read_sources([tmp_path / "train.bat"])
    assert source.text == "python train.py --dir C:\\Müller\n"


@pytest.mark.parametrize("data", [b"\xff\xfa\x00", b"\xff\x01", b"a\0b"], ids=["bytes", "control", "nul"])
def test_what_is_no_text_is_refused(tmp_path, data):
    (tmp_path / "model.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"model\.toml is no text"):
        read_sources([tmp_path / "model.toml"])


def test_folders_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        read_sources([tmp_path])
    with pytest.raises(ConfigError, match="does not exist"):
        read_sources([tmp_path / "gone.toml"])


def test_large_files_and_many_are_refused(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 2 MB"):
        read_sources([tmp_path / "a.toml"])
    with pytest.raises(ConfigError, match="larger than 2 MB"):
        check_sources([SetupFile("a", "x" * (MAX_BYTES + 1))])
    with pytest.raises(ConfigError, match="41 files were given"):
        check_sources([SetupFile("a", "")] * (MAX_FILES + 1))


def test_yaml_makes_no_objects():
    pytest.importorskip("yaml")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse(SetupFile("a.yaml", "config: !!python/object/apply:os.system ['true']"))


def test_yaml_that_doubles_itself_is_refused():
    pytest.importorskip("yaml")
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))]
    with pytest.raises(ConfigError, match="values, and no setup has more"):
        parse(SetupFile("a.yaml", "\n".join(lines)))


def test_yaml_that_holds_itself_is_refused():
    pytest.importorskip("yaml")
    with pytest.raises(ConfigError, match="a list that holds itself"):
        parse(SetupFile("a.yaml", "a: &a [*a]"))


@pytest.mark.parametrize(("name", "text"), [("a.json", "[" * 5000), ("a.json", '{"a":' * 50 + "1" + "}" * 50)])
def test_deep_files_are_refused(name, text):
    with pytest.raises(ConfigError, match=r"not valid JSON|levels of tables|tables inside each other"):
        parse(SetupFile(name, text))


def test_backslashes_in_toml_are_explained():
    pytest.importorskip("tomllib")
    with pytest.raises(ConfigError, match=r"In line 2, .*needs single quotes, 'C:\\data', or write C:/data"):
        parse(SetupFile("a.toml", 'a = 1\nimage_directory = "C:\\Users\\me"'))


def test_backslashes_in_json_are_explained():
    with pytest.raises(ConfigError, match="a backslash is written twice"):
        parse(SetupFile("a.json", '{"instance_data_dir": "C:\\data"}'))


def test_toml_without_its_ending_is_known():
    pytest.importorskip("tomllib")
    assert parse(SetupFile("dataset", "[general]\nbatch_size = 2\n")).data == {"general": {"batch_size": 2}}
    assert parse(SetupFile("dataset.txt", "[[datasets]]\nnum_repeats = 2\n")).data == {"datasets": [{"num_repeats": 2}]}

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.names import (
    MOST_BYTES,
    check_below,
    check_file_name,
    clean_name,
    in_short,
    is_device,
    is_plain,
    kind_of,
)

# What is put around a name: a temporary file of the longest LoRA, a run's folder and a file in it.
AROUND = [".{}_v99999_high_noise.safetensors.4194304.0123abcd.tmp", "{}_single_0123456789abcdef"]


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "con",
        "Nul",
        "PRN",
        "AUX",
        "COM1",
        "lpt9",
        "COM¹",
        "com³",
        "NUL.txt",
        "con.x.y",
        "aux .x",
        "CONIN$",
        "conout$.txt",
    ],
)
def test_windows_devices_are_no_names(name):
    assert is_device(name)
    with pytest.raises(ConfigError, match="Windows keeps that name for a device"):
        check_file_name(name, "name")


@pytest.mark.parametrize("name", ["CONE", "COM10", "COM", "LPT0", "my_con", "nul_1", "a.con"])
def test_names_that_only_look_like_devices_are_names(name):
    assert not is_device(name)
    assert check_file_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a.",
        "a ",
        " a",
        "a/b",
        "a\\b",
        "a:b",
        "a\0",
        "a\nb",
        "a\x1bb",
        "-a",
        "a*",
        "a?",
        "a|b",
        "\ud800",
        "a\u202eb",
        "\u0308a",
    ],
)
def test_what_some_system_cannot_have_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="name is '") as caught:
        check_file_name(name, "name")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["हिन्दी", "தமிழ்", "ไทย", "مُحَمَّد", "Mu\u0308ller"])
def test_letters_that_are_written_with_marks_are_letters(name):
    """Vowels of Indian scripts and of Arabic, and the dots of an u as the Mac has them in names."""
    assert check_file_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    ["👩\u200d🎨 portraits", "🎬_v2", "क्\u200dष", "❤\ufe0f👍🏽", "a, b & c's [final]", "b\u3000c", "9.00\u202fAM"],
)
def test_emoji_joiners_and_what_else_disks_have_in_names(name, tmp_path):
    assert check_file_name(name, "name") == name
    assert is_plain(name)
    assert in_short(name).replace(" ", "") == name.replace("\u3000", "").replace("\u202f", "").replace(" ", "")
    for around in AROUND:
        (tmp_path / around.format(name)).touch()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\u202eb", r"a character that can't be seen \(U\+202E\)"),
        ("a\tb", r"can't be seen \(U\+0009\)"),
        ("a/b", r"which holds '/': a file's name has no control characters and none of < >"),
        ("~a", "begin with a letter, a digit or a symbol"),
        ("\u200da", "begin with a letter"),
        ("a.", "not end with a dot or a space"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name, says):
    with pytest.raises(ConfigError, match=says):
        check_file_name(name, "name")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("👩\u200d🎨 a/b", "👩\u200d🎨 a_b"), ("👍🏽", "👍🏽"), ("\u200d🎬", "🎬"), ("👩\u200d" * 40, ("👩\u200d" * 27)[:-1]),
        ("my lora", "my lora"), ("_a/b: हिन्दी!", "a_b_ हिन्दी"), ("../a.", "a"), ("?\u0308a", "a"), ("?!", ""),
        ("con", "my_con"), ("猫" * 100, "猫" * 63), ("я" * 150, "я" * 95), ("a" * 99 + " b", "a" * 99), ("a\ud800b", "a_b"),
    ],
)  # fmt: skip
def test_of_a_text_that_is_no_name_the_nearest_one_is_made(text, name):
    made = clean_name(text)
    assert made == name
    assert not made or check_file_name(made, "name")


@pytest.mark.parametrize("letter", ["a", "ü", "猫", "𠀀"])
def test_the_longest_name_stays_a_file_name_with_what_is_put_around_it(letter, tmp_path):
    number = min(100, MOST_BYTES // len(letter.encode()))
    name = check_file_name(letter * number, "name")
    for around in AROUND:
        (tmp_path / around.format(name)).touch()
    with pytest.raises(ConfigError, match="too long"):
        check_file_name(letter * (number + 1), "name")


def test_a_name_of_thousands_of_letters_is_a_short_sentence():
    with pytest.raises(ConfigError, match=r"\(5000 characters\)") as caught:
        check_file_name("x" * 5000, "name")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "words"), [({}, "a dictionary"), ([], "a list"), (None, "null"), (True, "true or false"), (3, "a number")]
)
def test_what_is_no_text_is_refused_by_its_kind(value, words):
    for check in (check_file_name, check_below):
        with pytest.raises(ConfigError, match=words):
            check(value, "name")
    assert words in kind_of(value)


@pytest.mark.parametrize("name", ["a.safetensors", "a/b.gguf", "a\\b.gguf", "..a/b..c", "ab:c", "Ä/猫"])
def test_names_that_stay_below_their_folder(name):
    assert check_below(name, "file") == name


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "\\\\server\\share", "C:\\x", "c:x", "..", "../a", "a/../../b", "a\\..\\..\\b", "a/.."]
)
def test_names_that_lead_outside_as_they_are_written(name):
    with pytest.raises(ConfigError, match="leads outside"):
        check_below(name, "file")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_names_of_nothing(name):
    with pytest.raises(ConfigError, match="no file's name"):
        check_below(name, "file")


def test_what_is_shown_is_one_printable_line():
    assert in_short("a\n b\x00\x1b") == "a b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert in_short("x" * 100) == "x" * 60 + "... (100 characters)"

"""What is a plain file, seen without opening it, and text that can be shown."""

import os
from pathlib import Path

import pytest
from wan_train.core.paths import MAX_PATH, is_of_network, path_problem, shown, too_long


def test_a_file_is_one_and_a_folder_where_it_may_be(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a", encoding="utf-8")
    assert path_problem(file) == ""
    assert path_problem(tmp_path) == "is a folder"
    assert path_problem(tmp_path, folders=True) == ""


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nothing", "does not exist"),
        ("x" * (MAX_PATH + 1), f"is {MAX_PATH + 1} characters long"),
        ("y" * 1000, "can't be read (File name too long)" if os.name != "nt" else ""),
        ("a\0b", "holds characters that no file name has"),
        ("\ud800", "holds characters that no file name has" if os.name != "nt" else "does not exist"),
    ],
)
def test_what_is_no_path_is_said(path, problem):
    assert problem in path_problem(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names on Windows")
def test_pipes_devices_and_loops_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert path_problem(tmp_path / "link") == "is a pipe, not a file"
    assert path_problem("/dev/zero") == "is a device, not a file"
    assert "can't be read" in path_problem(tmp_path / "loop")


@pytest.mark.parametrize(
    ("path", "is_network"),
    [
        (r"\\server\share\x.safetensors", True),
        ("//server/share/x", True),
        (r"\\.\COM1", True),
        (r"\\?\C:\x", True),
        (r"C:\models\x", False),
        ("models/x", False),
    ],
)
def test_what_windows_would_ask_another_machine_for(path, is_network):
    assert is_of_network(path, windows=True) is is_network
    assert is_of_network(path, windows=False) is False


def test_a_path_that_windows_does_not_take_is_said():
    root = Path.cwd().anchor
    short, long = (Path(root, "x" * (length - len(root))) for length in (259, 260))
    assert [too_long(path, windows=True) for path in (short, long)] == ["", too_long(long, windows=True)]
    assert "would be 260 characters long, of which Windows takes 259" in too_long(long, windows=True)
    assert too_long(long, windows=False) == ""


def test_a_terminal_gets_no_commands():
    assert shown("a\x1b]0;evil\x07\nb") == "a�]0;evil��b"
    assert shown("👩\u200d🎨　9\u202fAM می\u200cخ") == "👩\u200d🎨　9\u202fAM می\u200cخ"
    assert shown("a\u202eb\u2028c\ud800") == "a�b�c�"
    assert shown("x" * 500, 10) == "xxxxxxxxxx... (500 characters)"

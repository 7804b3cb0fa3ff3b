"""Command lines as scripts have them: joined lines, quotes, comments, Windows paths; nothing is run."""

import re

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.importers.shell import command_of, commands, options_of

PROGRAM = re.compile(r"train\.py$")


@pytest.mark.parametrize("mark", ["\\", "^", "`"])
def test_lines_are_joined(mark):
    assert commands("a", f"python train.py {mark}\n  --a 1 {mark}\n  --b\n") == [
        ["python", "train.py", "--a", "1", "--b"]
    ]


def test_commands_are_apart():
    assert commands("a", "cd x && python train.py --a 1; echo done\n") == [
        ["cd", "x"], ["python", "train.py", "--a", "1"], ["echo", "done"],
    ]  # fmt: skip


def test_comments_are_left_out():
    text = "# python train.py --a 1\npython train.py --b 2 # --c 3\n"
    assert commands("a", text) == [["python", "train.py", "--b", "2"]]


def test_a_comment_between_joined_lines():
    assert commands("a", "python train.py --a 1 \\\n# --b 2 \\\n--c 3\n") == [
        ["python", "train.py", "--a", "1", "--c", "3"]
    ]


def test_windows_paths_keep_their_backslashes():
    (words,) = commands("a", 'python train.py --dir C:\\new\\train --name "my lora"')
    assert words == ["python", "train.py", "--dir", "C:\\new\\train", "--name", "my lora"]


def test_options_have_values_or_none():
    found = options_of(["--a", "--b=1", "--c", "x=1", "y=2", "--lr", "-1"])
    assert found == [("--a", ()), ("--b", ("1",)), ("--c", ("x=1", "y=2")), ("--lr", ("-1",))]


def test_the_launchers_options_are_apart():
    command = command_of(["accelerate", "launch", "--num_processes", "2", "src/train.py", "--a", "1"], PROGRAM)
    assert command is not None
    assert command.launcher == (("--num_processes", ("2",)),)
    assert command.options == (("--a", ("1",)),)


def test_an_apostrophe_in_what_a_script_writes_into_a_file_is_no_quote():
    text = "cat > prompts.txt << EOF\nit's a dog\nEOF\npython train.py --a 1\necho it's done\n"
    assert ["python", "train.py", "--a", "1"] in commands("train.sh", text)


def test_open_quotes_are_told():
    with pytest.raises(ConfigError, match=r"train\.sh: the command 'python"):
        commands("train.sh", 'python train.py --a "1\n')

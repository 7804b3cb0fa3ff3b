"""Arguments that a command does not know are told with the usage of that command."""

import pytest
from wan_train.core.cli.main import COMMANDS, main

NEEDED = {
    "caption": "x --model y", "extract": "--base x --tuned y --out z", "fold": "x --model y --out z", "merge": "x --out y",
    "preview": "--vae x --text-encoder y --out z --prompt words", "push": "x --to y", "change": "x --out y",
    "split": "x --out y", "average": "x --out y", "doctor": "", "download": "", "run": "",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_its_own_usage_is_shown(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, *NEEDED.get(name, "x").split(), "--not-there"])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"usage: wantrain {name} ")
    assert f"wantrain {name}: error: unrecognized arguments: --not-there" in told


def test_those_before_the_command_are_of_the_program(capsys):
    with pytest.raises(SystemExit):
        main(["--not-there", "doctor"])
    assert capsys.readouterr().err.startswith("usage: wantrain [-h] COMMAND")

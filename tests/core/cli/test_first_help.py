"""`wantrain` without a command says what to begin with, and no more."""

from wan_train.core.cli.main import COMMANDS, FIRST_COMMANDS, main


def test_without_a_command_the_first_ones_are_told(capsys):
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "required" not in told.err
    lines = told.err.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(FIRST_COMMANDS)
    assert all(COMMANDS[name] in told.err for name in FIRST_COMMANDS)
    assert "wantrain --help" in lines[-1]

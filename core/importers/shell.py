"""Command lines in scripts: read, never run. Bash, batch files and PowerShell, as far as trainers' commands use them."""

import re
import shlex
from dataclasses import dataclass

from ..errors import ConfigError
from ..paths import shown

_CONTINUED = re.compile(r"[ \t]*[\\^`][ \t]*\n")
_WINDOWS = re.compile(r"[A-Za-z]:\\|%\w+%|^\s*(?:@echo|set|rem)\b", re.IGNORECASE | re.MULTILINE)
_COMMAND = re.compile(r"\.py\b|(^|\s)--[A-Za-z]|\b(accelerate|simpletuner)\s")
VARIABLE = re.compile(r"\$\{?\w+|%\w+%|\$\(")  # $DIR, ${DIR}, %DIR%, $(pwd)


@dataclass(frozen=True)
class Command:
    """One command: the words before its script or program, that program, and its options."""

    program: str  # wan_train_network.py
    launcher: tuple[tuple[str, tuple[str, ...]], ...]  # options of accelerate or python, before the program
    options: tuple[tuple[str, tuple[str, ...]], ...]  # (name with its dashes, values), in order


def commands(name: str, text: str) -> list[list[str]]:
    """The words of every command in a script; comments are left out.

    ConfigError for a program or options with quotes that are not closed. Other such lines are no commands: what a script
    writes into a file, such as prompts, may hold an apostrophe.
    """
    is_windows = bool(_WINDOWS.search(text))
    found = []
    for line in _without_comments(text).splitlines():
        for piece in _pieces(name, line, is_windows):
            if piece:
                found.append(piece)
    return found


def _without_comments(text: str) -> str:
    """Comments go before lines are joined: in a shell a comment ends a command that a backslash would go on with."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|::|rem\b)", line, re.IGNORECASE)]
    return _CONTINUED.sub(" ", "\n".join(lines) + "\n")


def _pieces(name: str, line: str, is_windows: bool) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    if is_windows:
        lexer.escape = ""  # C:\data stays as it is
    try:
        words = list(lexer)
    except ValueError as error:
        if not _COMMAND.search(line):
            return []
        raise ConfigError(
            f"{shown(name)}: the command '{shown(line.strip(), 60)}' can't be read ({error}): close its quotes."
        ) from error
    pieces: list[list[str]] = [[]]
    for word in words:
        if word and not word.strip(";&|"):
            pieces.append([])
        else:
            pieces[-1].append(word)
    return pieces


def command_of(words: list[str], program: re.Pattern[str]) -> Command | None:
    """The command, where one of its words is such a program; None where none is."""
    at = next((i for i, word in enumerate(words) if program.search(word.replace("\\", "/"))), None)
    if at is None:
        return None
    return Command(words[at], tuple(options_of(words[:at])), tuple(options_of(words[at + 1 :])))


def options_of(words: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """--name value ..., --name=value and --name, in order. Words before the first option belong to none."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            option, equals, value = word.partition("=")
            found.append((option, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    return [(option, tuple(values)) for option, values in found]

"""The text of a setup's files, and what it holds: TOML, YAML, JSON, JSON lines or a script. Files may be a stranger's.

Nothing in a file is run, no path in it is opened, and sizes, depth and numbers of values are limited.
"""

import codecs
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..paths import path_problem, shown
from ..recipe.recipe import backslash_advice
from ..serial import check_depth

MAX_BYTES = 2_000_000  # of one file; the largest setup that was seen has 20 kB, a list of 10,000 captions some MB
MAX_FILES = 40
MAX_VALUES = 100_000  # in one file
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_BINARY = re.compile(rb"[^\t\n\f\r\x1a\x1b -\xff]")  # letters below a space that no text has


@dataclass(frozen=True)
class SetupFile:
    """A file by its name, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Parsed:
    """A file and what it holds: tables and lists, or None for a script."""

    name: str
    text: str
    data: Any


def read_sources(paths: Sequence[Path]) -> list[SetupFile]:
    """The files; ConfigError, by name, for what is no text file of a reasonable size."""
    return [SetupFile(path.name, _decoded(path.name, _bytes(path))) for path in paths]


def _bytes(path: Path) -> bytes:
    problem = path_problem(path)
    if problem:
        raise ConfigError(f"{shown(path)} {problem}: name the files of your setup.")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown(path)} can't be read ({error.strerror or error}).") from error


def _decoded(name: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown(name)} is larger than {MAX_BYTES / 1e6:g} MB, and no setup of a training is.")
    encoding = next((found for mark, found in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if _BINARY.search(data):
            raise ConfigError(
                f"{shown(name)} is no text in UTF-8: name the files of your setup, not models or media."
            ) from None
        text = data.decode("cp1252", errors="replace")  # as older Windows editors write batch files
    if "\0" in text:
        raise ConfigError(f"{shown(name)} is no text file: name the files of your setup, not models or media.")
    return text.replace("\r\n", "\n")


def check_sources(sources: Sequence[SetupFile]) -> None:
    """ConfigError for more, or larger, texts than a setup has."""
    if not sources:
        raise ConfigError("no file was given: name the files of your setup.")
    if len(sources) > MAX_FILES:
        raise ConfigError(f"{len(sources)} files were given, and no setup has more than {MAX_FILES}.")
    for source in sources:
        if len(source.text) > MAX_BYTES:
            raise ConfigError(
                f"{shown(source.name)} is larger than {MAX_BYTES / 1e6:g} MB, and no setup of a training is."
            )


def parse(source: SetupFile) -> Parsed:
    """What a file holds; ConfigError, with its name, for what is damaged."""
    data = _parse(source.name, source.text)
    _check_amount(data, source.name)
    check_depth(data, shown(source.name))
    return Parsed(source.name, source.text, data)


def _parse(name: str, text: str) -> Any:
    ending = Path(name.replace("\\", "/")).suffix.lower()
    start = text.lstrip()[:1]
    if ending == ".toml":
        return _toml(name, text)
    if ending in (".yaml", ".yml"):
        return _yaml(name, text)
    if ending == ".jsonl" or (start == "{" and _is_lines(text)):
        return _json_lines(name, text)
    is_toml = re.match(r"(#.*\n|\s)*\[\[?[\w.]+\]", text)
    if ending == ".json" or (start in ("{", "[") and not is_toml):
        return _json(name, text)
    if ending in ("", ".txt", ".example", ".config", ".conf"):
        if re.search(r"^\s*(job|config)\s*:", text, re.MULTILINE):
            return _yaml(name, text)
        if re.search(r"^\s*\[\[?[\w.]+\]\]?\s*$", text, re.MULTILINE):
            return _toml(name, text)
    return None


def _toml(name: str, text: str) -> Any:
    try:
        return importlib.import_module("tomllib").loads(text)
    except ImportError as error:
        raise ConfigError(
            f"{shown(name)} is TOML, which Python reads from 3.11 on: use Python 3.11 or newer."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(name)} is not valid TOML: {error}.{backslash_advice(text)}") from error


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(name)} is not valid JSON: {error}.{_json_advice(text)}") from error


def _json_advice(text: str) -> str:
    if re.search(r'"[A-Za-z]:\\', text):
        return " In JSON a backslash is written twice: C:\\\\data, or write C:/data."
    return ""


def _is_lines(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines[:20])


def _json_lines(name: str, text: str) -> Any:
    return [_json(f"{name}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _yaml(name: str, text: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise ConfigError(
            f"{shown(name)} is YAML, for which the package PyYAML is needed: install it (pip install pyyaml)."
        ) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(name)} is not valid YAML: {' '.join(str(error).split())}.") from error


def _check_amount(data: Any, name: str) -> None:
    """YAML can name a list inside itself, or double one thirty times over: counted without walking each repetition."""
    counts: dict[int, int] = {}
    open_now: set[int] = set()

    def count(value: Any) -> int:
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) in open_now:
            raise ConfigError(f"{shown(name)} holds a list that holds itself.")
        if id(value) not in counts:
            open_now.add(id(value))
            counts[id(value)] = 1 + sum(count(item) for item in (value.values() if isinstance(value, dict) else value))
            open_now.discard(id(value))
        return counts[id(value)]

    try:
        total = count(data)
    except RecursionError as error:
        raise ConfigError(f"{shown(name)} has more tables inside each other than any setup.") from error
    if total > MAX_VALUES:
        raise ConfigError(f"{shown(name)} holds {total} values, and no setup has more than {MAX_VALUES}.")

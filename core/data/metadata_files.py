"""Captions of many files in one: JSONL, CSV and JSON as the field writes them, and JSON beside a single file.

Known forms: Hugging Face's metadata.jsonl and metadata.csv (file_name, text), musubi-tuner's JSONL (image_path or
video_path, caption), diffusion-pipe's captions.json (a table of names with lists of captions), kohya's JSON (a table of
names with entries), SimpleTuner's CSV.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DatasetError
from ..limits import MAX_WORD
from ..names import same_name
from ..paths import shown
from ..serial import MAX_DEPTH
from .links import leads_within
from .media import BadMediaError
from .text_files import read_text_file
from .types import Note

FOUND_BY_NAME = tuple(
    f"{stem}.{ending}" for stem in ("metadata", "captions", "dataset") for ending in ("jsonl", "json", "csv")
)
NAME_FIELDS = ("file_name", "image_path", "video_path", "filename", "file", "path", "image", "video", "media_path")
CAPTION_FIELDS = ("caption", "captions", "text", "prompt", "description")
_TAG_FIELD = "tags"  # kohya's, where there is no caption
_MAX_BYTES = 256_000_000
_SHOWN_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a metadata file says of the files of a folder."""

    name: str  # of the metadata file
    captions: Mapping[str, tuple[str, ...]]  # by name relative to the folder
    notes: tuple[Note, ...]


def find_metadata(folder: Path, given: str, names: Iterable[str], within: Sequence[Path] | None) -> Path:
    """The metadata file: the one that was given, relative to the folder, or one of the known names in the folder.

    `names`: the other files of the folder, relative to it. `within`: places that a path may lead to. DatasetError if there is
    none, or if there are several of the known names.
    """
    if given:
        path = folder / given
        if within is not None and not leads_within(path, within):
            raise DatasetError(
                f"metadata_file is {shown(given)}, which leads outside the dataset folders: put the file into {folder}."
            )
        if not path.is_file():
            raise DatasetError(
                f"metadata_file is {shown(given)}, and there is no such file in {folder}: check the name."
            )
        return path
    found = [name for name in names if name.lower() in FOUND_BY_NAME]
    if not found:
        raise DatasetError(
            f"caption_source is 'metadata', but {folder} has no {', '.join(FOUND_BY_NAME[:-1])} or {FOUND_BY_NAME[-1]}: name "
            "the file that holds the captions in metadata_file."
        )
    if len(found) > 1:
        raise DatasetError(f"{folder} has {' and '.join(found)}: say in metadata_file which one holds the captions.")
    return folder / found[0]


def read_metadata(path: Path, folder: Path, names: Iterable[str]) -> Listed:
    """The captions that a metadata file has for the files of `folder` called `names`, each relative to it.

    An entry names a file by its path, relative to the metadata file or to the folder, or absolute. Where there is nothing at
    that path, as in a file that was written on another machine, the file's name alone has to fit exactly one. What names no
    file is told. DatasetError, with the line, for what is no such file.
    """
    label = path.name
    try:
        text, told = read_text_file(path, _MAX_BYTES)
    except BadMediaError as error:
        raise DatasetError(f"The metadata file {path} cannot be used: {error}.") from error
    found: dict[str, list[str]] = {}
    lost: list[str] = []
    moved: list[str] = []
    finder = _Finder(path, folder, names)
    for name, captions in _entries(path, text):
        target, by_path = finder.find(name)
        if target is None:
            lost.append(name)
            continue
        if not by_path:
            moved.append(name)
        found.setdefault(target, []).extend(captions)
    several = sum(len(captions) > 1 for captions in found.values())
    reasons = [
        f"has the captions of {len(found)} {'file' if len(found) == 1 else 'files'}"
        + (f", several for {several} of them" if several else "")
    ]
    reasons += [told] if told else []
    reasons += [f"{_examples(moved)} found by their names alone: nothing is at their paths"] if moved else []
    reasons += [f"{_examples(lost)} ignored: no such image or clip is in the folder"] if lost else []
    notes = tuple(Note(name=label, action="note", reason=reason) for reason in reasons)
    return Listed(name=label, captions={name: tuple(texts) for name, texts in found.items()}, notes=notes)


def captions_in_json(text: str, *, by_line: bool) -> list[str]:
    """Captions in a JSON file beside an image or clip; `by_line`: JSONL. BadMediaError for what holds none."""
    lines = [line for line in text.splitlines() if line.strip()] if by_line else [text]
    found = []
    for line in lines:
        found += _captions_of(_parsed(line))
    return found


class _Finder:
    """Which file of a folder a name in a metadata file means."""

    def __init__(self, path: Path, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder.absolute()
        self._places = (Path(os.path.normpath(path.absolute().parent)), self._folder)
        self._names = frozenset(names)
        self._by_stem = _unique((name.rpartition(".")[0], name) for name in self._names)
        self._by_last = _unique((PurePosixPath(name).name, name) for name in self._names)
        self._by_last_stem = _unique((PurePosixPath(name).stem, name) for name in self._names)
        self._by_spelling = _unique((same_name(PurePosixPath(name).name), name) for name in self._names)

    def find(self, name: str) -> tuple[str | None, bool]:
        """(the file's name relative to the folder, or None; whether it lies where the name says)."""
        written = name.replace("\\", "/")
        for place in self._places:
            inside = self._inside(place, written)
            for found in (inside, self._by_stem.get(inside)):
                if found in self._names:
                    return found, True
        last = PurePosixPath(written).name
        found = self._by_last.get(last) or self._by_last_stem.get(last) or self._by_spelling.get(same_name(last))
        return found, False

    def _inside(self, place: Path, name: str) -> str:
        """The name relative to the folder; "" for one outside of it."""
        if "\0" in name:
            return ""
        path = Path(os.path.normpath(place / name))
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else ""


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keys that stand for one name only."""
    found: dict[str, str] = {}
    several = set()
    for key, name in pairs:
        if key in found:
            several.add(key)
        found[key] = name
    return {key: name for key, name in found.items() if key not in several}


def _entries(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Names and captions, in order."""
    read = {".jsonl": _jsonl_entries, ".csv": _csv_entries, ".tsv": _csv_entries}.get(
        path.suffix.lower(), _json_entries
    )
    for where, entry in read(text, path):
        try:
            yield _name_of(entry), _captions_of(entry)
        except BadMediaError as error:
            raise DatasetError(f"{path}, {where}: {error}.") from error


def _jsonl_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", _parsed(line)
            except BadMediaError as error:
                raise DatasetError(f"{path}, line {number}: {error}.") from error


def _json_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        data = _parsed(text)
    except BadMediaError as error:
        raise DatasetError(f"{path}: {error}.") from error
    if isinstance(data, dict):
        for name, value in data.items():
            yield (
                f"entry '{shown(name)}'",
                {NAME_FIELDS[0]: name, **(value if isinstance(value, dict) else {CAPTION_FIELDS[0]: value})},
            )
    elif isinstance(data, list):
        for number, entry in enumerate(data, 1):
            yield f"entry {number}", entry
    else:
        raise DatasetError(f"{path} holds neither a table of names with captions nor a list of entries.")


def _csv_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if not set(columns) & set(NAME_FIELDS) or not set(columns) & {*CAPTION_FIELDS, _TAG_FIELD}:
        raise DatasetError(
            f"The first line of {path} must name its columns, one of them {NAME_FIELDS[0]} and one {CAPTION_FIELDS[0]}; it is "
            f"'{shown(first.strip())}'."
        )
    reader.fieldnames = columns
    try:
        for row in reader:
            yield f"line {reader.line_num}", {key: value for key, value in row.items() if isinstance(value, str)}
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}, is not valid CSV: {error}.") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"more than {MAX_DEPTH} levels" if isinstance(error, RecursionError) else str(error)
        raise BadMediaError(f"it is not valid JSON ({reason})") from error


def _name_of(entry: Any) -> str:
    if not isinstance(entry, dict):
        raise BadMediaError("it must be an object with a file's name and its caption")
    for field in NAME_FIELDS:
        value = entry.get(field)
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise BadMediaError(f"it names no file: give one as {NAME_FIELDS[0]} ({_fields(entry)})")


def _captions_of(value: Any) -> list[str]:
    """Texts of a caption, of a list of captions, or of an entry with a field for them."""
    if isinstance(value, dict):
        fields = [field for field in (*CAPTION_FIELDS, _TAG_FIELD) if field in value]
        if not fields:
            raise BadMediaError(f"it has no caption: give one as {CAPTION_FIELDS[0]} ({_fields(value)})")
        filled = [field for field in fields if value[field]]
        value = value[(filled or fields)[0]]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise BadMediaError(f"its caption is {shown(repr(text))}, which is no text")
    return [text for text in texts if text]


def _fields(entry: Mapping[str, Any]) -> str:
    return f"its fields: {shown(', '.join(map(str, entry)), MAX_WORD)}" if entry else "it is empty"


def _examples(names: Sequence[str]) -> str:
    """How many entries, and the first of them."""
    first = ", ".join(shown(name) for name in names[:_SHOWN_NAMES])
    more = ", ..." if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'} ({first}{more})"

"""The file of the bench of methods: a row for each mark of each run, added as the run ends."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ...core.disk import write_atomic
from ...core.errors import ConfigError
from .method_runs import COLUMNS, Row


class MethodRows:
    """`methods.csv`. What a crash left of a run is dropped when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        there = read_rows(path) if path.exists() else []
        whole = {row["key"] for row in there if row["is_end"] == "1"}
        self.rows = [row for row in there if row["key"] in whole]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _text([dict(zip(COLUMNS, COLUMNS, strict=True)), *self.rows])
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, lambda file: file.write(text.encode()))

    @property
    def keys(self) -> set[str]:
        """Of the runs that are there."""
        return {row["key"] for row in self.rows}

    def add(self, rows: Sequence[Row]) -> None:
        """All rows of a run; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_text(rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a file. ConfigError for a file with other columns."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} has other columns than this version writes: choose another file for --out.")
        return [row for row in reader if None not in row and None not in row.values()]


def _text(rows: Sequence[Row]) -> str:
    found = io.StringIO()
    csv.DictWriter(found, list(COLUMNS), lineterminator="\n").writerows(rows)
    return found.getvalue()

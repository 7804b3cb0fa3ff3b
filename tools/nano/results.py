"""What a bench found: `results.csv`, a row for each run, and the table of means over seeds."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ConfigError
from .evaluate import ATTRIBUTES
from .family import STAGES

COLUMNS = (
    "concept", "seed", "setting", "learnt", "leaked", "bled", "kept", "kept_base",
    *(f"asked_{name}" for name in ATTRIBUTES), "steps_to_90", "loss_high", "loss_low", "seconds", "curve",
    "kept_curve", "key",
)  # fmt: skip

Row = dict[str, str]


class Results:
    """`results.csv`: a row for each run that has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(COLUMNS)
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(
                    f"{path} has other columns than this version writes: choose another folder for --out."
                )
            self.rows = list(reader)

    def add(self, row: Row) -> None:
        """Append a row; it is in the file when this returns."""
        self._append([row[name] for name in COLUMNS])
        self.rows.append(row)

    def _append(self, values: Sequence[str]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(values)

    @property
    def keys(self) -> set[str]:
        """The keys of the runs that have a row."""
        return {row["key"] for row in self.rows}


@dataclass(frozen=True)
class Group:
    """All seeds of one setting, for one concept."""

    concept: str
    setting: str  # without what is the same in all groups
    rows: tuple[Row, ...]

    def values(self, column: str) -> list[float]:
        """The column's numbers, seed by seed; empty cells left out."""
        return [float(row[column]) for row in self.rows if row[column]]

    def mean(self, column: str) -> float | None:
        """Their mean, None where there are none."""
        values = self.values(column)
        return statistics.fmean(values) if values else None

    def curve(self) -> list[tuple[int, float]]:
        """Mean over the seeds of the share learnt, by the number of steps."""
        points: dict[int, list[float]] = {}
        for row in self.rows:
            for point in row["curve"].split():
                step, _, value = point.partition(":")
                points.setdefault(int(step), []).append(float(value))
        return [(step, statistics.fmean(values)) for step, values in sorted(points.items())]

    def steps_to_90(self) -> str:
        """Of each seed; "never" where it was not reached."""
        return ", ".join(row["steps_to_90"] or "never" for row in self.rows)


def common_parts(rows: Sequence[Row]) -> list[str]:
    """What all settings have in common, where there are several: it tells none of them apart."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    if len(settings) < 2:
        return []
    return [part for part in settings[0].split() if all(part in other.split() for other in settings)]


def groups(rows: Sequence[Row]) -> list[Group]:
    """Rows by concept and setting, in order of first appearance."""
    common = set(common_parts(rows))
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        own = " ".join(part for part in row["setting"].split() if part not in common)
        found.setdefault(row["concept"], {}).setdefault(own or "defaults", []).append(row)
    return [
        Group(concept, setting, tuple(of_setting))
        for concept, settings in found.items()
        for setting, of_setting in settings.items()
    ]


def percent(value: str | float | None) -> str:
    """A share as the table has it, empty where there is none."""
    return "" if value in (None, "") else f"{float(value):.0%}"


def table(rows: Sequence[Row]) -> str:
    """Markdown: means over the seeds; steps to 90 % seed by seed."""
    head = ("concept", "setting", "seeds", "learnt", "leaked", "bled", "kept", "kept, base", "steps to 90 %",
            "loss high", "loss low", "seconds")  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for group in groups(rows):
        shares = [percent(group.mean(name)) for name in ("learnt", "leaked", "bled", "kept", "kept_base")]
        losses = ["" if (mean := group.mean(f"loss_{stage}")) is None else f"{mean:.4f}" for stage in STAGES]
        seconds = f"{group.mean('seconds'):.0f}"
        lines.append(
            [group.concept, group.setting, str(len(group.rows)), *shares, group.steps_to_90(), *losses, seconds]
        )
    common = " ".join(common_parts(rows))
    return "\n".join(
        [f"| {' | '.join(line)} |" for line in lines] + ([f"\nIn all of them: {common}"] if common else [])
    )

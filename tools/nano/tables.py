"""Writes the tables of nano/README.md that are made from files: `python -m tools.nano tables`.

Each stands between <!-- FILE.csv --> and <!-- end -->, and is made of nano/curves/FILE.csv; without the file it is empty.
"""

import csv
import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from . import few_steps, held_out
from .family import ROOT
from .paired import paired

Rows = Sequence[dict[str, str]]

_PLACE = re.compile(r"(<!-- (\w+\.csv) -->\n).*?(<!-- end -->)", re.S)


def judged_table(rows: Rows) -> str:
    """What the few-step pair shows of what was asked, beside the base."""
    names = [name for name in rows[0] if name != "model"]
    lines = [f"| | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    return "\n".join(
        [*lines, *(f"| {row['model']} | {' | '.join(f'{float(row[n]):.1%}' for n in names)} |" for row in rows)]
    )


def peer_table(rows: Rows) -> str:
    """What LoRAs of several trainers have learnt after equal steps on one device: seed by seed, and means."""
    lines = [
        "| concept | device | steps | trainer | learnt, by seed | mean | the rest as asked |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, int, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["concept"], row["device"], int(row["steps"]), row["trainer"]), []).append(row)
    for group, own in sorted(groups.items(), key=lambda item: (*item[0][:3], item[0][3] != "ours")):
        own.sort(key=lambda row: int(row["seed"]))
        learnt, kept = ([float(row[name]) for row in own] for name in ("learnt", "kept"))
        each = ", ".join(f"{row['seed']}: {value:.0%}" for row, value in zip(own, learnt, strict=True))
        cells = [*map(str, group), each, f"{np.mean(learnt):.0%}", f"{np.mean(kept):.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_beside_ours(rows)])


def _beside_ours(rows: Rows) -> list[str]:
    """Sentences: what ours have more or less than each other trainer's, where both have the same concept and seed."""
    values: dict[tuple[str, int, str], dict[str, dict[Hashable, float]]] = {}
    for row in rows:
        own = values.setdefault((row["device"], int(row["steps"]), row["trainer"]), {"learnt": {}, "kept": {}})
        for name, by_training in own.items():
            by_training[row["concept"], row["seed"]] = float(row[name])
    told: list[str] = []
    for (device, steps, trainer), others in sorted(values.items()):
        mine = values.get((device, steps, "ours"))
        learnt, kept = (paired(mine[name], others[name]) if mine else None for name in ("learnt", "kept"))
        if trainer != "ours" and learnt is not None:
            told.append(
                f"Ours less {trainer}'s after {steps} steps, {device}, in points, with the standard error of {learnt.count} "
                f"pairs: concept {learnt}, the rest as asked {kept}."
            )
    return ["", *told] if told else []


TABLES: dict[str, Callable[[Rows], str]] = {
    "distil.csv": judged_table,
    "few_steps.csv": few_steps.table,
    "held_out.csv": held_out.table,
    "peer.csv": peer_table,
}


def with_tables(text: str) -> str:
    """The text with each of its tables made anew."""

    def made(found: re.Match[str]) -> str:
        path = ROOT / "curves" / found[2]
        if not path.exists():
            return found[1] + found[3]
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return f"{found[1]}{TABLES[found[2]](rows)}\n{found[3]}"

    return _PLACE.sub(made, text)


def main(_arguments: list[str]) -> None:
    """See the module's docstring."""
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

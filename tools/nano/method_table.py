"""What the bench of methods found: means over seeds, which differences are more than chance, and which checkpoint to choose.

A method and what it is compared with have the same clips, noise and prompts, seed by seed. So the differences are taken seed
by seed, and how far those of one method spread, averaged over all methods, says what chance does.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ...core.train.scores import score_of
from .method_costs import spread_in_words
from .method_runs import Row
from .methods import BASELINE, GROUPS, METHODS
from .pairs import MAIN_PAIR
from .results import percent

SURE = 3.0  # standard errors: of the some 600 differences of the table, chance alone makes one or two as large
SHARES = {
    "look": "look", "move": "movement", "both": "both at once", "kept": "the rest kept", "aligned": "as asked",
    "bled": "bleed", "leaked": "leak",
}  # fmt: skip
MEAN, QUALITY = "mean", ("look", "move", "both", "kept")  # one number for a checkpoint: the mean of these
GRADED = (MEAN, *SHARES, "moves")


@dataclass(frozen=True)
class Found:
    """All runs of one method on one pair: its rows by seed, the last of each being the end's."""

    method: str
    pair: str
    runs: dict[str, list[Row]]

    def ends(self, column: str) -> dict[str, float]:
        """By seed, after as many steps as all have."""
        return {seed: value_of(rows[-1], column) for seed, rows in self.runs.items()}

    def at(self, column: str, share: float) -> dict[str, float]:
        """By seed, after this share of its steps, between the marks on a straight line; at most the end's."""
        return {seed: _between(rows, column, share) for seed, rows in self.runs.items()}

    def mean(self, column: str) -> float:
        """At the end."""
        return statistics.fmean(self.ends(column).values())


def _between(rows: Sequence[Row], column: str, share: float) -> float:
    steps = share * int(rows[-1]["step"])
    before, last = 0.0, float(rows[0]["base_kept"]) / (len(QUALITY) if column == MEAN else 1)
    last = last if column in (MEAN, "kept") else 0.0  # what the base has
    for row in rows:
        after, value = int(row["step"]), value_of(row, column)
        if after >= steps:
            return last + (value - last) * (steps - before) / (after - before)
        before, last = after, value
    return last


def value_of(row: Row, column: str) -> float:
    """A number of a row, or the mean of those that tell how good it is."""
    return statistics.fmean(float(row[name]) for name in QUALITY) if column == MEAN else float(row[column])


def found_in(rows: Iterable[Row], pair: str = MAIN_PAIR) -> dict[str, Found]:
    """By method, group by group; methods that the list no longer has are left out."""
    found: dict[str, Found] = {}
    for row in rows:
        if row["pair"] == pair and row["method"] in METHODS:
            of = found.setdefault(row["method"], Found(row["method"], pair, {}))
            of.runs.setdefault(row["seed"], []).append(row)
    return {name: found[name] for name in sorted(found, key=lambda name: GROUPS.index(METHODS[name].group))}


Values = Callable[[Found], dict[str, float]]  # by seed; {} where nothing is known


def gaps(found: dict[str, Found], values: Values) -> dict[str, list[float]]:
    """By method: how much more it has than what it is compared with, seed by seed."""
    told = {}
    for name, one in found.items():
        other = found.get(METHODS[name].against)
        if name != BASELINE and other is not None:
            mine, others = values(one), values(other)
            told[name] = [mine[seed] - others[seed] for seed in mine if seed in others]
    return {name: differences for name, differences in told.items() if differences}


def beyond_chance(found: dict[str, Found], values: Values) -> dict[str, float]:
    """The mean differences that are larger than SURE standard errors, by method."""
    all_gaps = gaps(found, values)
    several = [each for each in all_gaps.values() if len(each) > 1]
    freedom = sum(len(each) - 1 for each in several)
    if not freedom:
        return {}
    spread = math.sqrt(sum(statistics.variance(each) * (len(each) - 1) for each in several) / freedom)
    means = {name: statistics.fmean(each) for name, each in all_gaps.items() if len(each) > 1}
    return {name: mean for name, mean in means.items() if abs(mean) > SURE * spread / math.sqrt(len(all_gaps[name]))}


def at_equal_seconds(column: str, costs: Mapping[str, float]) -> Values:
    """After as many steps as a method makes while a plain LoRA makes all of its own. `costs`: see method_costs.py."""

    def values(one: Found) -> dict[str, float]:
        cost = costs.get(METHODS[one.method].cost)
        return {} if cost is None else one.at(column, 1 / cost)

    return values


def table(rows: Sequence[Row], costs: Mapping[str, float] = MappingProxyType({})) -> str:
    """Markdown: the methods, the pairs, the choices. `costs`: of a step, see method_costs.py."""
    parts = (_methods(rows, costs), spread_in_words(costs), _sentences(rows), _pairs(rows), _choices(rows))
    return "\n\n".join(part for part in parts if part)


def table_of_pairs(rows: Sequence[Row]) -> str:
    """Markdown: the pairs, the choices; for a file with the baseline alone, which has no methods to compare."""
    return "\n\n".join(part for part in (_pairs(rows), _choices(rows)) if part)


def _methods(rows: Sequence[Row], costs: Mapping[str, float]) -> str:
    found = found_in(rows)
    if BASELINE not in found:
        return ""
    columns: dict[str, Values] = {name: (lambda one, name=name: one.ends(name)) for name in GRADED}
    columns |= {f"{name} at equal seconds": at_equal_seconds(name, costs) for name in (MEAN, "look", "move")}
    sure = {name: beyond_chance(found, values) for name, values in columns.items()}
    head = ["method", "advised by", "seeds", *(SHARES.get(name, name) for name in columns), "cost of a step"]
    lines = [head, ["---"] * len(head)]
    for method, one in found.items():
        cells = []
        for name, values in columns.items():
            own = values(one).values()
            if not own:
                cells.append("")
                continue
            mean = statistics.fmean(own)
            mark = {True: " ▲", False: " ▼"}[sure[name][method] > 0] if method in sure[name] else ""
            cells.append((f"{mean:.2f}" if name == "moves" else percent(mean)) + mark)
        cost = costs.get(METHODS[method].cost)
        told = "" if cost is None else f"{cost:.2f}"
        lines.append([method, METHODS[method].advised_by, str(len(one.runs)), *cells, told])
    return _markdown(lines)


def _sentences(rows: Sequence[Row]) -> str:
    """Which methods come out better or worse in the mean than what they are compared with, and what became of advice."""
    found = found_in(rows)
    sure = beyond_chance(found, lambda one: one.ends(MEAN))
    told = []
    for words, names in (
        ("Better in the mean", [name for name, gap in sure.items() if gap > 0]),
        ("Worse in the mean", [name for name, gap in sure.items() if gap < 0]),
        ("Advised by a guide, and no more than chance", [
            name for name in found if METHODS[name].advised_by and name not in sure and len(found[name].runs) > 1
        ]),
    ):  # fmt: skip
        listed = [f"{name} ({sure[name]:+.1%})" if name in sure else name for name in names]
        told.append(f"{words}: {'; '.join(listed) or 'none'}.")
    return "\n".join(told) if sure else ""


def _pairs(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["pair"] for row in rows))
    if len(names) < 2:
        return ""
    head = ["pair", "method", "seeds", *SHARES.values(), "moves"]
    lines = [head, ["---"] * len(head)]
    for pair in names:
        for method, one in found_in(rows, pair).items():
            if pair != MAIN_PAIR or method == BASELINE:
                cells = [*(percent(one.mean(name)) for name in SHARES), f"{one.mean('moves'):.2f}"]
                lines.append([pair, method, str(len(one.runs)), *cells])
    return _markdown(lines)


def _lowest(marks: Sequence[Row]) -> float:
    return min(float(row["held_out"]) for row in marks)


def _nearness(row: Row) -> float:
    """1 where the preview moves as its sample does."""
    return min(float(row["preview"]), 1 / float(row["preview"]))


def _by_score(marks: Sequence[Row]) -> Row:
    """Today's score, of equal ones the latest, as the core chooses; what it was when the rows were made is in their `score`."""
    lowest = _lowest(marks)
    return max(
        marks, key=lambda row: (score_of(float(row["held_out"]), lowest, float(row["preview"])), int(row["step"]))
    )


CHOICES: dict[str, Callable[[list[Row]], Row]] = {
    "the last": lambda marks: marks[-1],
    "lowest held-out loss": lambda marks: min(marks, key=lambda row: float(row["held_out"])),
    "motion nearest to the sample's": lambda marks: max(marks, key=_nearness),
    "loss and motion, each as near as may be": lambda marks: max(
        marks, key=lambda row: _lowest(marks) / float(row["held_out"]) * _nearness(row)
    ),
    "highest score": _by_score,
    "the best of all, as the exam says": lambda marks: max(marks, key=lambda row: value_of(row, MEAN)),
}


def _choices(rows: Sequence[Row]) -> str:
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["key"], []).append(row)
    if not runs:
        return ""
    lines = [["checkpoint", "runs", *(SHARES[name] for name in QUALITY), "their mean"], ["---"] * (3 + len(QUALITY))]
    for name, choose in CHOICES.items():
        chosen = [choose(marks) for marks in runs.values()]
        means = [statistics.fmean(float(row[column]) for row in chosen) for column in QUALITY]
        shares = [f"{value:.1%}" for value in (*means, statistics.fmean(value_of(row, MEAN) for row in chosen))]
        lines.append([name, str(len(chosen)), *shares])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

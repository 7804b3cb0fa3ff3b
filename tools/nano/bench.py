"""Compares ways of training: teaches concepts with every combination of settings and measures each LoRA:

python -m tools.nano bench --concepts star swing --seeds 1 2 --vary adapter.rank=4,16 --stages high,both --out FOLDER

Writes FOLDER/results.csv, a row as each run ends, and FOLDER/plot.svg; prints a table. Runs that have a row are not
made again, so an interrupted bench goes on, and a later one adds to it.
"""

import argparse
import csv
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from pathlib import Path
from xml.sax.saxutils import escape

from ...core.errors import ConfigError
from ...core.serial import digest, to_dict
from ...core.train.run_folder import RunFolder
from .concepts import CONCEPTS, Concept
from .evaluate import ATTRIBUTES, SAMPLING, Family
from .family import STAGES
from .judge import judge
from .teach import (
    Answers,
    Exam,
    Lesson,
    Settings,
    Train,
    Workshop,
    add_common_arguments,
    answer,
    changed,
    check_count,
    common_settings,
    field_names,
    grade,
    learnt,
    run_command,
    show,
    teach,
    trainer_of,
    with_lora,
    workshop_of,
)

REACHED = 0.9  # share of prompts that counts as learnt
COLUMNS = (
    "concept", "seed", "setting", "learnt", "leaked", "bled", "kept", "kept_base",
    *(f"asked_{name}" for name in ATTRIBUTES), "steps_to_90", "loss_high", "loss_low", "seconds", "curve", "key",
)  # fmt: skip
STAGE_SETS = {"high": "high", "low": "low", "both": "+".join(STAGES)}
# Settings that an argument of the command decides.
DECIDED = {
    "loop.seed": "--seeds",
    "stages": "--stages",
    "loop.checkpoint_every": "--measure-every",
    "loop.keep_last": "--measure-every",
}

Row = dict[str, str]


@dataclass(frozen=True)
class Run:
    """One row to be."""

    concept: Concept
    settings: Settings  # the seed in it

    @property
    def setting(self) -> str:
        """What differs from the defaults, the seed apart: "adapter.rank=4 loop.steps=50"."""
        usual, own = flat(Settings()), flat(self.settings)
        told = [name for name in field_names() if own[name] != usual[name] and name != "loop.seed"]
        return " ".join(f"{name}={own[name]}" for name in told) or "defaults"


def flat(settings: Settings) -> dict[str, str]:
    """Values by dotted name, written as `changed` reads them."""
    values: dict[str, str] = {}
    for name in field_names():
        value = attrgetter(name)(settings)
        values[name] = "+".join(value) if isinstance(value, tuple) else str(value)
    return values


def combinations(settings: Settings, varied: Sequence[tuple[str, Sequence[str]]]) -> list[Settings]:
    """The settings with every combination of the varied fields' values, the last field varying fastest."""
    found = []
    for values in product(*(values for _, values in varied)):
        combined = settings
        for (name, _), value in zip(varied, values, strict=True):
            combined = changed(combined, name, value)
        found.append(combined)
    return list(dict.fromkeys(found))


def parse_varied(texts: Iterable[str]) -> list[tuple[str, list[str]]]:
    """FIELD=VALUE,VALUE,... as names and values."""
    varied = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise ConfigError(f"'{text}' must have the form FIELD=VALUE,VALUE,..., for example adapter.rank=4,16.")
        varied.append((name, values.split(",")))
    return varied


def refuse_decided(names: Iterable[str]) -> None:
    """ConfigError for a setting that has an argument of its own."""
    for name in names:
        if name in DECIDED:
            raise ConfigError(f"{name} is decided by {DECIDED[name]}: set it there.")


# Running ----------------------------------------------------------------------------------------------------------


class Bench:
    """Teaches and measures; the base is loaded, and asked, only once."""

    def __init__(self, workshop: Workshop, *, num_prompts: int, measure_every: int, train: Train) -> None:
        check_count(num_prompts)
        if measure_every < 1:
            raise ConfigError(f"measure-every is a number of steps, at least 1; got {measure_every}.")
        # Runs with another rhythm of checkpoints are other runs: theirs are not the snapshots that are measured here.
        self.workshop = replace(workshop, runs=f"runs/measured-every-{measure_every}")
        self.num_prompts = num_prompts
        self.measure_every = measure_every
        self._train = train
        self._family: Family | None = None
        self._off: dict[Concept, Answers] = {}
        self._files = workshop.identities()

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of all runs: they take far more room than the LoRAs, which stay."""
        for folder in (self.workshop.folder / self.workshop.runs).glob("*"):
            shutil.rmtree(RunFolder(folder).checkpoints_path, ignore_errors=True)

    @property
    def family(self) -> Family:
        """The base."""
        if self._family is None:
            self._family = Family.load(self.workshop.files, self.workshop.device)
        return self._family

    def key(self, run: Run) -> str:
        """Digest of everything that decides a row."""
        exam = Exam.of(run.concept, self.num_prompts)
        asked = [[prompt for _, prompt in (*exam.triggered, *exam.plain)], exam.seed, to_dict(SAMPLING)]
        return digest([to_dict(run.concept), to_dict(run.settings), asked, self.measure_every, self._files])

    def row(self, run: Run) -> Row:
        """Teach, measure along the way and at the end."""
        loop = run.settings.loop
        often = replace(loop, checkpoint_every=self.measure_every, keep_last=loop.steps)
        lessons = teach(run.concept, replace(run.settings, loop=often), self.workshop, self._train)
        for warning in dict.fromkeys(warning for lesson in lessons.values() for warning in lesson.warnings):
            print(warning, flush=True)
        exam = Exam.of(run.concept, self.num_prompts)
        if run.concept not in self._off:
            self._off[run.concept] = answer(self.family, exam)
        score = grade(exam, off=self._off[run.concept], on=answer(self._with(lessons), exam))
        curve = {**self._curve(lessons, exam, loop.steps), loop.steps: score.learnt}
        values = {
            "concept": run.concept.name,
            "seed": loop.seed,
            "setting": run.setting,
            **{name: _share(getattr(score, name)) for name in ("learnt", "leaked", "bled", "kept", "kept_base")},
            **{f"asked_{name}": _share(value) for name, value in score.as_asked.items()},
            "steps_to_90": next((step for step, value in sorted(curve.items()) if value >= REACHED), ""),
            **{f"loss_{stage}": f"{lessons[stage].loss:.4f}" if stage in lessons else "" for stage in STAGES},
            "seconds": f"{sum(lesson.seconds for lesson in lessons.values()):.1f}",
            "curve": " ".join(f"{step}:{_share(value)}" for step, value in sorted(curve.items())),
            "key": self.key(run),
        }
        return {name: str(values[name]) for name in COLUMNS}

    def _curve(self, lessons: dict[str, Lesson], exam: Exam, steps: int) -> dict[int, float]:
        """Share of prompts that show the concept, by the number of steps, before the last."""
        curve = {}
        for step in range(self.measure_every, steps, self.measure_every):
            clips = show(self._with(lessons, step), exam.triggered, exam.seed, SAMPLING)
            curve[step] = learnt([judge(clip) for clip in clips], exam.concept)
        return curve

    def _with(self, lessons: dict[str, Lesson], step: int | None = None) -> Family:
        loras = {stage: lesson.lora if step is None else lesson.snapshots[step] for stage, lesson in lessons.items()}
        return with_lora(self.family, loras.get("high"), loras.get("low"))


def _share(value: float) -> str:
    return f"{value:.4g}"


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


def run_all(bench: Bench, runs: Sequence[Run], results: Results) -> None:
    """Make the runs that have no row yet."""
    for number, run in enumerate(runs, start=1):
        told = f"[{number}/{len(runs)}] {run.concept.name} seed {run.settings.loop.seed} {run.setting}"
        if bench.key(run) in results.keys:
            print(f"{told}: has a row", flush=True)
            continue
        start = time.perf_counter()
        row = bench.row(run)
        results.add(row)
        print(
            f"{told}: learnt {_percent(row['learnt'])}, kept {_percent(row['kept'])} of {_percent(row['kept_base'])}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


# Showing ----------------------------------------------------------------------------------------------------------


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


def _percent(value: str | float | None) -> str:
    return "" if value in (None, "") else f"{float(value):.0%}"


def table(rows: Sequence[Row]) -> str:
    """Markdown: means over the seeds; steps to 90 % seed by seed."""
    head = ("concept", "setting", "seeds", "learnt", "leaked", "bled", "kept", "kept, base", "steps to 90 %",
            "loss high", "loss low", "seconds")  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for group in groups(rows):
        shares = [_percent(group.mean(name)) for name in ("learnt", "leaked", "bled", "kept", "kept_base")]
        losses = ["" if (mean := group.mean(f"loss_{stage}")) is None else f"{mean:.4f}" for stage in STAGES]
        seconds = f"{group.mean('seconds'):.0f}"
        lines.append(
            [group.concept, group.setting, str(len(group.rows)), *shares, group.steps_to_90(), *losses, seconds]
        )
    common = " ".join(common_parts(rows))
    return "\n".join(
        [f"| {' | '.join(line)} |" for line in lines] + ([f"\nIn all of them: {common}"] if common else [])
    )


INK, LINE, LEARNT, KEPT = "#222", "#ccc", "#1f5fbf", "#c2571a"
ROW, LETTER, AXIS, CURVE, MARGIN = 24, 6.7, 260, 120, 16  # pixels: height, widths


def plot(rows: Sequence[Row]) -> str:
    """SVG: a panel for each concept, a line for each setting: learnt and kept as dots, then learnt over the steps."""
    found = groups(rows)
    left = MARGIN + LETTER * max(len(group.setting) for group in found) + 12
    width = max(580, left + AXIS + 24 + CURVE + 16 + LETTER * max(14, *(len(group.steps_to_90()) for group in found)))
    most = max(step for group in found for step, _ in group.curve())
    parts = list(_legend())
    top = 52.0
    for concept in dict.fromkeys(group.concept for group in found):
        panel = [group for group in found if group.concept == concept]
        parts += _panel(concept, panel, (left, top), most)
        top += ROW * (len(panel) + 2) + 14
    if common_parts(rows):
        parts.append(_text(MARGIN, top, f"In all settings: {' '.join(common_parts(rows))}"))
        top += 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{top:.0f}" '
        f'viewBox="0 0 {width:.0f} {top:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    yield _dot(MARGIN + 5, 20, LEARNT)
    yield _text(MARGIN + 15, 24, "learnt: prompts with the trigger that show the concept")
    yield _ring(MARGIN + 5, 40, KEPT)
    yield _text(MARGIN + 15, 44, "kept: prompts without it that are as asked; bar: without the LoRA")
    yield _text(MARGIN + 380, 44, "several seeds: small, with their mean")


def _panel(concept: str, panel: Sequence[Group], corner: tuple[float, float], most: int) -> Iterator[str]:
    left, top = corner
    bottom = top + ROW * (len(panel) + 1)
    curve = left + AXIS + 24
    yield _text(MARGIN, top + 16, concept, 'font-weight="bold" font-size="14"')
    yield _text(curve, top + 16, f"learnt over {most} steps", 'font-size="11"')
    yield _text(curve + CURVE + 16, top + 16, "steps to 90 %", 'font-size="11"')
    for quarter in range(5):
        x = left + AXIS * quarter / 4
        yield f'<path d="M{x:.1f} {top + ROW:.1f}V{bottom:.1f}" stroke="{LINE}"/>'
        yield _text(x, bottom + 14, f"{quarter / 4:.0%}", 'font-size="11" text-anchor="middle"')
    for number, group in enumerate(panel, start=1):
        middle = top + ROW * (number + 0.5)
        yield _text(left - 12, middle + 4, group.setting, 'text-anchor="end"')
        yield from _dots(group, left, middle)
        yield _line(group, curve, middle, most)
        yield _text(curve + CURVE + 16, middle + 4, group.steps_to_90())


def _dots(group: Group, left: float, middle: float) -> Iterator[str]:
    """Small marks for the seeds, large ones for their mean."""
    base = left + AXIS * (group.mean("kept_base") or 0.0)
    yield f'<path d="M{base:.1f} {middle - 7:.1f}v14" stroke="{KEPT}" stroke-width="2"/>'
    for column, colour, mark in (("kept", KEPT, _ring), ("learnt", LEARNT, _dot)):
        values = group.values(column)
        for value in values if len(values) > 1 else ():
            yield _dot(left + AXIS * value, middle, colour, 2)
        yield mark(left + AXIS * statistics.fmean(values), middle, colour)


def _line(group: Group, left: float, middle: float, most: int) -> str:
    """Learnt over the steps, from nothing at step 0."""
    low, height = middle + 9, 18
    points = [(0, 0.0), *group.curve()]
    path = " ".join(f"{left + CURVE * step / most:.1f},{low - height * value:.1f}" for step, value in points)
    return (
        f'<path d="M{left:.1f} {low:.1f}h{CURVE}m0 {-height}h{-CURVE}" stroke="{LINE}" fill="none"/>'
        f'<polyline points="{path}" stroke="{LEARNT}" stroke-width="1.5" fill="none"/>'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _dot(x: float, y: float, colour: str, radius: float = 5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def _ring(x: float, y: float, colour: str, radius: float = 5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="none" stroke="{colour}" stroke-width="2"/>'


# The command ------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Make the runs, write the results, print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.nano bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, required=True, metavar="CONCEPT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUE,...", help="values to compare")
    parser.add_argument("--stages", default="both", help=f"comma-separated, of {', '.join(STAGE_SETS)}")
    parser.add_argument("--measure-every", type=int, default=25, metavar="STEPS")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    run_command(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> None:
    runs = planned(options)
    bench = Bench(
        workshop_of(options),
        num_prompts=options.prompts,
        measure_every=options.measure_every,
        train=trainer_of(options),
    )
    results = Results(options.out / "results.csv")
    run_all(bench, runs, results)
    bench.drop_checkpoints()
    (options.out / "plot.svg").write_text(plot(results.rows), encoding="utf-8")
    print(table(results.rows))


def planned(options: argparse.Namespace) -> list[Run]:
    """The runs that the command line asks for; every setting is checked before the first one starts."""
    varied = parse_varied(options.vary)
    refuse_decided([name for name, _ in varied] + [text.partition("=")[0] for text in options.set])
    unknown = [name for name in options.stages.split(",") if name not in STAGE_SETS]
    if unknown:
        raise ConfigError(f"--stages has '{unknown[0]}'; it takes {', '.join(STAGE_SETS)}, comma-separated.")
    stages = [STAGE_SETS[name] for name in options.stages.split(",")]
    all_settings = combinations(common_settings(options), [*varied, ("stages", stages)])
    return [
        Run(CONCEPTS[name], changed(settings, "loop.seed", str(seed)))
        for name, seed, settings in product(options.concepts, options.seeds, all_settings)
    ]

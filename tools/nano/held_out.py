"""What the held-out loss says while a LoRA learns: python -m tools.nano held_out --out nano/curves/held_out.csv

Trains the baseline of the bench of methods, and takes the loss of each expert at its marks as a run does: on clips that it
trains, on the few that are held out, and on many more of the same concepts, so that few clips or their noise can't be why it
rises. One row for each seed, step and expert. How much was learnt at these steps is in nano/curves/methods.csv.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...core.disk import write_atomic
from .family import Files
from .method_runs import Looking, MethodRun
from .methods import BASELINE, METHODS
from .pairs import MAIN_PAIR, Pair
from .quick import QuickSchool, held_out_loss

COLUMNS = ("seed", "step", "expert", "trained", "held_out", "more")
OTHER_SEED = 97  # added to that of a run: whose clips the many more are
EACH = 3  # of the clips that are trained every third one is asked, which is enough for a mean
Rows = Sequence[dict[str, str]]


def rows_of(school: QuickSchool, run: MethodRun, folder: Path, looking: Looking) -> list[dict[str, str]]:
    """Of one seed. Encodings lie below `folder`."""
    settings, pair = run.settings(), Pair.of(run.pair)
    data = {stage: school.data(pair, own, folder) for stage, own in settings.items()}
    pupils = {stage: school.pupil(school.job(stage, own, data[stage])) for stage, own in settings.items()}
    rows = []
    for step in (0, *looking.steps(next(iter(settings.values())).loop.steps)):
        for stage, pupil in pupils.items():
            school.train(pupil, step)
            other = replace(settings[stage], loop=replace(settings[stage].loop, seed=run.seed + OTHER_SEED))
            more = [sample for sample in school.data(pair, other, folder).samples if not sample.is_regularization]
            taught = [s for s in data[stage].samples if not (s.held_out or s.is_regularization)]
            losses = [held_out_loss(pupil, samples).loss for samples in (taught[::EACH], (), more)]
            row = run.seed, step, stage, *(f"{loss:.4f}" for loss in losses)
            rows.append(dict(zip(COLUMNS, map(str, row), strict=True)))
    return rows


def table(rows: Rows) -> str:
    """Markdown: means over the seeds, expert by expert."""
    lines = ["| expert | steps | clips that are trained | held out | many more |", "|---|---|---|---|---|"]
    for stage, step in dict.fromkeys(
        (row["expert"], row["step"]) for row in sorted(rows, key=lambda row: row["expert"])
    ):
        own = [row for row in rows if (row["expert"], row["step"]) == (stage, step)]
        means = [statistics.fmean(float(row[name]) for row in own) for name in COLUMNS[3:]]
        lines.append(f"| {stage} noise | {step} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Make the rows, print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.nano held_out", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the table, csv")
    parser.add_argument("--work", type=Path, required=True, help="folder for encodings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--marks", type=int, default=Looking().marks)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    school, common = QuickSchool(Files(options.family), options.device), [text.partition("=") for text in options.set]
    rows: list[dict[str, str]] = []
    for seed in options.seeds:
        run = MethodRun(METHODS[BASELINE], MAIN_PAIR, seed, tuple((name, value) for name, _, value in common))
        rows += rows_of(school, run, options.work, Looking(marks=options.marks))
    text = "\n".join([",".join(COLUMNS), *(",".join(row[name] for name in COLUMNS) for row in rows), ""])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, lambda file: file.write(text.encode()))
    print(table(rows))

"""Compares every method of training on the nano models, several runs at a time:

python -m tools.nano methods --out nano/curves/methods.csv --processes 14 --total 480 --device cuda

Each run teaches both experts a look and a movement by words of their own, is looked at four times, and is a run of that
method: tools/nano/methods.py has the list. Rows are added as runs end; a run that has its rows is not made again, and none is
begun that would not end before --total seconds are over. First comes the first seed of all methods, then the second.
`--table` makes no runs: it prints what a file says, and draws it beside the file as SVG; by default the repository's. The
tables of nano/curves/methods.csv and nano/curves/grid.csv then go into nano/README.md.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch

from ...core.errors import ConfigError
from ...core.serial import digest
from .command import run_command
from .exam import PROMPTS, check_count
from .family import Files
from .method_costs import read_costs
from .method_plot import draw
from .method_rows import MethodRows, read_rows
from .method_runs import Looking, MethodRun, Row, Runner
from .method_table import table, table_of_pairs
from .methods import GROUPS, METHODS
from .pairs import GRID, MAIN_PAIR, Pair
from .results import percent
from .side_by_side import Shift, work, work_side_by_side
from .workshop import Workshop

CURVES, README = Files().root / "curves", Files().root / "README.md"
OURS, OUR_GRID = CURVES / "methods.csv", CURVES / "grid.csv"
BEGIN, END = "<!-- made by python -m tools.nano methods --table -->", "<!-- end -->"
BEGIN_GRID = "<!-- made by python -m tools.nano methods --table nano/curves/grid.csv -->"


def main(arguments: list[str]) -> None:
    """Make the runs, or print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.nano methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the file of rows")
    parser.add_argument("--table", type=Path, nargs="?", const=OURS, metavar="FILE")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, over all devices")
    parser.add_argument("--total", type=float, default=1e9, metavar="SECONDS")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--pairs", nargs="+", default=[MAIN_PAIR], metavar="LOOK+MOVEMENT", help="grid: all of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all methods")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each of four kinds")
    parser.add_argument("--marks", type=int, default=4, help="times that a run is looked at, evenly spread")
    parser.add_argument("--device", "--devices", nargs="+", default=["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "wantrain-nano", help="for encodings"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        torch.set_num_threads(1)
        work(
            lambda: Runner.of(
                Files(options.family), options.work, _looking(options), options.device[0], options.pairs[:1]
            )
        )
    else:
        run_command(lambda: _show(options.table) if options.table else _compare(options))


def _looking(options: argparse.Namespace) -> Looking:
    check_count(options.prompts)
    if options.marks < 1:
        raise ConfigError(f"--marks is a number of times, at least 1; got {options.marks}.")
    return Looking(options.prompts, options.marks)


def _show(path: Path) -> None:
    rows = read_rows(path)
    print(table(rows, read_costs()))
    path.with_suffix(".svg").write_text(draw(rows), encoding="utf-8")
    if path.resolve() in PLACES:
        begin, made = PLACES[path.resolve()]
        README.write_text(with_table(README.read_text(encoding="utf-8"), made(rows), begin), encoding="utf-8")


def document(rows: Sequence[Row]) -> str:
    """What stands in nano/README.md."""
    return f"![What each method taught](curves/methods.svg)\n\n{table(rows, read_costs())}"


# By file: where its table begins in nano/README.md, and what makes it.
PLACES: dict[Path, tuple[str, Callable[[Sequence[Row]], str]]] = {
    OURS: (BEGIN, document),
    OUR_GRID: (BEGIN_GRID, table_of_pairs),
}


def with_table(text: str, made: str, begin: str = BEGIN) -> str:
    """A document with the table in its place."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{made}\n{END}{after}"


def planned_runs(options: argparse.Namespace) -> list[MethodRun]:
    """Seed by seed, of each method after method; every setting is checked before the first run starts."""
    common = tuple(tuple(text.partition("=")[::2]) for text in options.set)
    pairs = [pair for name in options.pairs for pair in (GRID if name == "grid" else (name,))]
    for pair in pairs:
        Pair.of(pair)
    chosen = [method for name, method in METHODS.items() if name in options.methods and method.group in options.groups]
    runs = [MethodRun(method, pair, seed, common) for seed, method, pair in product(options.seeds, chosen, pairs)]  # type: ignore[arg-type]
    if not runs:
        raise ConfigError("there is nothing to run: none of the methods is in one of the groups.")
    for run in runs:
        run.settings()
    return runs


def _compare(options: argparse.Namespace) -> None:
    if options.out is None:
        raise ConfigError("--out says which file the rows are added to.")
    if options.processes < 1:
        raise ConfigError(f"--processes is at least 1; got {options.processes}.")
    looking, planned = _looking(options), planned_runs(options)  # what is quickly refused comes first
    rows = MethodRows(options.out)
    models = digest(Workshop(files=Files(options.family), folder=options.work).identities())
    runs = [run for run in planned if run.key(looking, models) not in rows.keys]
    print(f"{len(runs)} runs of {len(planned)} are to be made.", flush=True)
    shift = Shift(runs, options.total, lambda run, found, seconds: _add(rows, run, found, seconds))
    arguments = [
        "--family", str(options.family.absolute()), "--work", str(options.work.absolute()), "--prompts", str(options.prompts),
        "--marks", str(options.marks), "--pairs", planned[0].pair,
    ]  # fmt: skip
    if runs:
        count = min(options.processes, len(runs))
        work_side_by_side(shift, devices=options.device, processes=count, arguments=arguments, logs=options.work)
    for run, why in shift.failed:
        print(f"failed: {run.told}: {why}", flush=True)
    print(f"{len(shift.runs)} runs are left; {options.total - shift.left_s:.0f} s.")


def _add(rows: MethodRows, run: MethodRun, found: list[Row], seconds: float) -> None:
    rows.add(found)
    last = found[-1]
    shares = ", ".join(f"{name} {percent(last[name])}" for name in ("look", "move", "both", "kept"))
    print(f"{run.told}: {shares}; {float(last['seconds']):.1f} s of training, {seconds:.1f} s in all", flush=True)

"""The constants of the planner's predictions, fitted to steps that ran, and how far the predictions are off.

python benchmarks/fit_constants.py                     print the errors for each card, of cells that were held out of the fit
python benchmarks/fit_constants.py --write             and write core/plan/constants.json
python benchmarks/fit_constants.py --report FILE ...   with the cells of reports (`wantrain doctor --report RUN --json`) too

Cells are the rows of benchmarks/results/steps.json and memory-*.json: what one step took under one plan. Of each card every
fourth is held out. The other cells decide the constants that the file calls fitted; a new set takes the place of the old one
only where it is clearly better on the cells held out of every card, since the planner was tested with the old. All other
constants were counted or measured otherwise, and stay: the file says how.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
import torch  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip  # noqa: E402
from wan_train.core.cli.report import task_of  # noqa: E402
from wan_train.core.plan.card import Card  # noqa: E402
from wan_train.core.plan.constants import PATH, Constants, read_constants, using  # noqa: E402
from wan_train.core.plan.decision import GRAPH_SIZE  # noqa: E402
from wan_train.core.plan.estimate import estimate  # noqa: E402
from wan_train.core.plan.plan import Bucket, Plan, Task, clip_tokens  # noqa: E402
from wan_train.core.plan.sizes import Trained, rest_bytes  # noqa: E402
from wan_train.core.serial import from_dict  # noqa: E402

RESULTS = PACK / "benchmarks" / "results"
HELD_OUT = 4  # of so many cells of a card, one
BETTER = 0.9  # times the error of before, of every card: what a new set has to reach to take the place of the old
ROUNDS = 4  # of Gauss and Newton
PRIOR = (
    0.05  # of a constant's own size, or of one unit: a change for which the cells have to speak as much as one 5 % off
)
FREE = 2**40  # bytes: what a card has free plays no part in what a step takes


@dataclass(frozen=True)
class Cell:
    """One plan on one card, and what a step of it took."""

    device: str
    card: Card
    task: Task
    bucket: Bucket
    plan: Plan
    gigabytes: float  # 1e9 bytes, the most that tensors took
    seconds: float

    def errors(self) -> tuple[float, float]:
        """Of memory and of time: the logarithm of predicted over measured."""
        found = estimate(self.task, self.bucket, self.plan, self.card)
        return math.log(found.vram / 1e9 / self.gigabytes), math.log(found.seconds / self.seconds)


def read_cells(results: Path = RESULTS) -> list[Cell]:
    """All cells of the files, but those of weights on a disk, whose rate is not measured but assumed."""
    cells = list(read_steps(results / "steps.json"))
    for path in sorted(results.glob("memory-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in report["rows"] if row.get("ours_s") and not row.get("held_ram_gb")]
        cells += [memory_cell(row, report["device"]) for row in rows]
    return cells


def read_steps(path: Path) -> Iterable[Cell]:
    """The cells of a file such as steps.json, whose rows name their latents and their card."""
    report = json.loads(path.read_text(encoding="utf-8"))
    for row in report["rows"]:
        sizes, bucket = MODELS[row["model"]], Bucket(tuple(row["latents"]))
        device = report["devices"][row["card"]]
        task = Task(
            sizes=sizes,
            graphs="H100" in device and bucket.shape[1] == 1,
            rest_bytes=rest_bytes(sizes) // 2 if row.get("embeddings") == "16 bits" else None,
        )
        plan = Plan(precision=row["precision"], compile="static", **row["plan"])
        card = make_card(device, report["rates"][row["card"]])
        yield Cell(device, card, task, bucket, plan, row["peak_allocated_gb"], row["ours_s"])


def memory_cell(row: dict[str, Any], device: str) -> Cell:
    """That of a row of the memory benchmark."""
    sizes, wanted = MODELS[row["model"]], {field.name for field in fields(Plan)}
    options = {name: value for name, value in row["memory"].items() if name in wanted and value is not None}
    bucket = Bucket(Clip.parse(row["shape"]).latent_shape(sizes))
    return Cell(
        device,
        Card(**row["card"]),
        Task(
            sizes=sizes,
            trained=Trained(rank=row.get("rank", 16)),
            rest_bytes=rest_bytes(sizes) // 2,
            graphs=clip_tokens(sizes, bucket) * sizes.dim <= GRAPH_SIZE,
        ),
        bucket,
        Plan(precision=row["precision"], **options),
        row["peak_allocated_gb"],
        row["ours_s"],
    )


def make_card(name: str, rates: dict[str, float]) -> Card:
    """A card by its rates; where they say nothing of fp32 and of pageable memory, no cell depends on it."""
    beside = {"matmul_fp32": 50e12, "staged": 10e9, **rates}
    return Card(name=name, free=FREE, total=FREE, free_ram=FREE, pinnable_ram=FREE, **beside)


def read_reports(paths: Sequence[Path]) -> list[Cell]:
    """Cells of reports that people have sent; those of a run whose plan changed, or that measured nothing, give none."""
    return [cell for path in paths for cell in _report_cells(json.loads(path.read_text(encoding="utf-8")))]


def _report_cells(report: dict[str, Any]) -> Iterable[Cell]:
    run = report.get("run") or {}
    if cell := run.get("cell"):
        card = from_dict(Card, run["card"])
        bucket = Bucket(tuple(cell["latents"]), cell["batch"])
        yield Cell(
            card.name,
            card,
            task_of(cell["task"]),
            bucket,
            from_dict(Plan, cell["plan"]),
            cell["gigabytes"],
            cell["seconds"],
        )


def split(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Those to fit, and those held out: of each card every `HELD_OUT`th, in the order of the files."""
    seen: dict[str, int] = {}
    fitting, held_out = [], []
    for cell in cells:
        number = seen[cell.device] = seen.get(cell.device, 0) + 1
        (held_out if number % HELD_OUT == 0 else fitting).append(cell)
    return fitting, held_out


def rms(errors: Sequence[float]) -> float:
    """Root of the mean square, as a factor less 1."""
    return math.exp(math.sqrt(fmean(error**2 for error in errors))) - 1


def errors_of(cells: Sequence[Cell], constants: Constants) -> dict[str, dict[str, float]]:
    """By card: how many cells there are, and how far memory and time are off, as parts of what was measured."""
    found = {}
    with using(constants):
        for device in sorted({cell.device for cell in cells}):
            memory, seconds = zip(*(cell.errors() for cell in cells if cell.device == device), strict=True)
            found[device] = {
                "cells": len(memory),
                "memory": round(rms(memory), 3),
                "memory_most": round(math.exp(max(map(abs, memory))) - 1, 3),
                "seconds": round(rms(seconds), 3),
                "seconds_most": round(math.exp(max(map(abs, seconds))) - 1, 3),
            }
    return found


def fit(cells: Sequence[Cell], start: Constants, names: Sequence[str]) -> Constants:
    """The constants `names` by least squares of the errors, each drawn to where it starts by `PRIOR`; three digits of it."""
    first = {name: float(getattr(start, name)) for name in names}
    scales = {name: PRIOR * max(abs(value), 1.0 if name in _UNITS else 0.0) for name, value in first.items()}
    now = dict(first)

    def residuals(values: dict[str, float]) -> torch.Tensor:
        with using(replace(start, **values)):
            errors = [error for cell in cells for error in cell.errors()]
        drawn = [(values[name] - first[name]) / scales[name] * 0.05 for name in names]
        return torch.tensor([*errors, *drawn], dtype=torch.float64)

    for _ in range(ROUNDS):
        at = residuals(now)
        columns = [
            (residuals({**now, name: now[name] + 0.1 * scales[name]}) - at) / (0.1 * scales[name]) for name in names
        ]
        step = torch.linalg.lstsq(torch.stack(columns, dim=1), -at.unsqueeze(1)).solution.flatten().tolist()
        now = _descend(now, dict(zip(names, step, strict=True)), residuals)
    return replace(start, **{name: float(f"{value:.3g}") for name, value in now.items()})


_UNITS = ("fp8_compute", "compiled_peak_ffn", "products_kept")  # which may be near 0


def _descend(
    now: dict[str, float], step: dict[str, float], residuals: Callable[[dict[str, float]], torch.Tensor]
) -> dict[str, float]:
    """The step, or so much of it that the errors become less: the predictions have corners."""
    before = residuals(now).square().sum()
    for part in (1.0, 0.5, 0.25, 0.1):
        there = {name: value + part * step[name] for name, value in now.items()}
        if residuals(there).square().sum() < before:
            return there
    return now


def is_better(new: dict[str, dict[str, float]], old: dict[str, dict[str, float]]) -> bool:
    """Whether the errors of every card are, memory and time taken together."""
    return all(
        new[device]["memory"] + new[device]["seconds"] <= BETTER * (old[device]["memory"] + old[device]["seconds"])
        for device in old
    )


def made(content: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """What the file shall hold: constants, and the errors of the cells held out.

    Where the old constants stay, people may have seen these cells when they chose them; the errors of the set that was
    fitted anew, which has not, stand beside theirs.
    """
    entries = content["constants"]
    old = Constants(**{name: entry["value"] for name, entry in entries.items()})
    fitting, held_out = split(cells)
    new = fit(fitting, old, [name for name, entry in entries.items() if entry.get("fitted")])
    old_errors, new_errors = errors_of(held_out, old), errors_of(held_out, new)
    taken, errors = (new, new_errors) if is_better(new_errors, old_errors) else (old, old_errors)
    values = asdict(taken)
    return {
        "constants": {name: {**entry, "value": values[name]} for name, entry in entries.items()},
        "cells": len(cells),
        "held_out": errors,
        "held_out_of_a_new_fit": new_errors,
    }


def table(errors: dict[str, dict[str, float]]) -> str:
    """As Markdown: what the README of the benchmarks tells."""
    lines = ["| Card | Cells held out | Memory: root mean square, most | Seconds a step |", "|---|---|---|---|"]
    for device, of in errors.items():
        memory, seconds = (f"{of[what]:.1%}, {of[f'{what}_most']:.1%}" for what in ("memory", "seconds"))
        lines.append(f"| {device} | {of['cells']} | {memory} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write core/plan/constants.json")
    parser.add_argument("--report", type=Path, nargs="+", default=[], metavar="FILE", help="reports of other machines")
    options = parser.parse_args()
    cells = [*read_cells(), *read_reports(options.report)]
    content = json.loads(PATH.read_text(encoding="utf-8"))
    old = read_constants()
    found = made(content, cells)
    print(f"{len(cells)} cells, of which those held out are off by:\n\n{table(found['held_out'])}\n")
    changed = {
        name: entry["value"] for name, entry in found["constants"].items() if entry["value"] != getattr(old, name)
    }
    if changed:
        print("Clearly better, and taken: " + ", ".join(f"{name} {value:g}" for name, value in changed.items()))
    else:
        print(
            f"The constants stay: fitted anew, the cells held out would be off by\n\n{table(found['held_out_of_a_new_fit'])}"
        )
    if options.write:
        PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`wantrain checkpoints`: list the checkpoints of a run with their held-out loss and a score, and say which is best.

The score, of 100, is below 100 only where the held-out loss is more than twice the lowest, or a step's preview moves less than
0.4 or more than 2.5 times as much as its sample: something may have broken then. The best is the highest score, of equal ones
the latest, so nearly always the last. No number sees whether a style, a face or a motion is right: look at them, also at the
one with the lowest held-out loss.
"""

import argparse
import json
import sys
from pathlib import Path

from ...train.run_folder import RunFolder
from ...train.scores import NOT_MEASURED, Scored, Scores, score_run
from ...train.start import check_run_folder

_HEAD = ("step", "held-out loss", "score", "motion", "file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="write the list as JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    folder = RunFolder(options.run_folder.resolve())
    job = folder.read_job()
    check_run_folder(folder.path)
    scores = score_run(folder, job)
    sys.stdout.write(f"{_as_json(scores) if options.json else table(scores)}\n")
    return 0


def table(scores: Scores) -> str:
    """For people: a line for each checkpoint, and which is best."""
    if not scores.checkpoints:
        return "no checkpoint is kept yet"
    rows = [_HEAD, *(_row(one) for one in scores.checkpoints)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    if any(one.is_between and one.loss is not None for one in scores.checkpoints):
        lines.append("~: not measured at this step, but between two that were")
    for one in scores.checkpoints:
        if one.damage:
            lines.append(f"step {one.step} is damaged ({one.damage}): it is not compared, and no LoRA is taken from it")
        elif one.no_resume:
            lines.append(f"step {one.step}: its LoRA is sound, but no run can go on from it ({one.no_resume})")
    best, lowest = scores.best, scores.lowest
    if best is None or lowest is None:
        return "\n".join([*lines, f"{NOT_MEASURED}."])
    return "\n".join([*lines, f"best: step {best.step}; lowest held-out loss: step {lowest.step}"])


def _row(one: Scored) -> tuple[str, ...]:
    loss = "-"
    if one.loss is not None:
        loss = f"{'~' if one.is_between else ''}{one.loss:.5f}"
        loss += f" (+{one.behind:.5f} ± {one.error:.5f})" if one.behind and one.error is not None else ""
    score = "damaged" if one.damage else "-" if one.score is None else f"{one.score:.0f}"
    return str(one.step), loss, score, "-" if one.motion is None else f"{one.motion:.2f}", str(one.lora)


def _as_json(scores: Scores) -> str:
    best = scores.best
    rows = [{**vars(one), "lora": str(one.lora)} for one in scores.checkpoints]
    return json.dumps({"best": best.step if best else None, "checkpoints": rows}, indent=2)

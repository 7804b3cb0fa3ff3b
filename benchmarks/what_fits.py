"""Which clips fit which cards, and at which pace: what the planner expects, with what was measured in its place.

python benchmarks/what_fits.py benchmarks/results/memory-h100.json --precision fp8 --ram 64

Prints Markdown; with --missing the cells that are left to measure. The rates are those of the card in the file; what is free
of its memory is that of each column. A model's file is taken to hold 16 bits outside of the blocks, as most do.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks.material import MODELS, Clip  # noqa: E402
from wan_train.benchmarks.memory_rows import KEY  # noqa: E402
from wan_train.core.plan.card import Card  # noqa: E402
from wan_train.core.plan.decision import GRAPH_SIZE  # noqa: E402
from wan_train.core.plan.plan import Bucket, Plan, Task, clip_tokens  # noqa: E402
from wan_train.core.plan.planner import Choice, Planner  # noqa: E402
from wan_train.core.plan.sizes import Trained, rest_bytes  # noqa: E402

WHOLE = 78  # what a card of 80 GB has free, whose cells without a cap are measured
FREE = (6, 8, 12, 16, 24, 32, 48, WHOLE)  # GB of 2**30 bytes that are free on a card
CLIPS = (
    *("512x512x1", "768x768x1", "1024x1024x1"),
    *("512x512x33", "512x512x41", "512x512x81", "832x480x33", "832x480x41", "832x480x81", "1280x720x81"),
)


# What makes a plan, and what it is where a row does not say.
PLAN = {field.name: field.default for field in fields(Plan) if field.name not in ("precision", "compile")}


class Table(NamedTuple):
    """What is wanted: of which rows of measurements, for which model and precision, with how much main memory in bytes."""

    rows: list[dict[str, Any]]
    model: str
    precision: str
    ram: int

    @property
    def card(self) -> Card:
        """That of the rows, with so much main memory."""
        card = Card(**max((row["card"] for row in self.rows if row.get("card")), key=lambda card: card["attention"]))
        return replace(card, free_ram=self.ram, pinnable_ram=self.ram)


def choose(wanted: Table, clip: str, free: int) -> Choice | None:
    """The planner's choice with `free` GB of 2**30 bytes; None where the clip does not fit."""
    sizes, bucket = MODELS[wanted.model], Bucket(Clip.parse(clip).latent_shape(MODELS[wanted.model]))
    graphs = clip_tokens(sizes, bucket) * sizes.dim <= GRAPH_SIZE
    planner = Planner(
        task=Task(sizes=sizes, rest_bytes=rest_bytes(sizes) // 2, graphs=graphs),
        buckets=[bucket],
        card=replace(wanted.card, free=free * 2**30),
        plan=Plan(precision=wanted.precision, compile="static"),
    )
    return planner.choose()


def measured(wanted: Table, clip: str, free: int, choice: Choice | None) -> float | None:
    """Seconds of a step with so much of the card, or else in the same plan with less, if that was measured.

    In no more main memory, nor held to less.
    """
    same = {"model": wanted.model, "precision": wanted.precision, "shape": clip}
    rows = [row for row in wanted.rows if row.get("ours_s") and all(row[name] == same[name] for name in same)]
    rows = [
        row
        for row in rows
        if row.get("rank", KEY["rank"]) == Trained().rank
        and not row.get("held_ram_gb")
        and row["ram_gb"] * 1e9 <= wanted.ram
    ]
    cap = 0 if free == WHOLE else free
    found = [row["ours_s"] for row in rows if row["cap_gb"] == cap]
    if not found and choice is not None:
        plan = asdict(choice.plan)
        less = [row for row in rows if 0 < row["cap_gb"] < free]
        alike = [row for row in less if all(row["memory"].get(name, off) == plan[name] for name, off in PLAN.items())]
        found = [row["ours_s"] for row in alike]
    return found[0] if found else None


def table(wanted: Table) -> str:
    """Clips against what is free of a card; what was measured is bold."""
    lines = [f"| {' | '.join(['Clip', *(f'{free} GB' for free in FREE)])} |", "|---|" + "---:|" * len(FREE)]
    for clip in CLIPS:
        cells = []
        for free in FREE:
            choice = choose(wanted, clip, free)
            seconds = measured(wanted, clip, free, choice)
            if seconds is not None:
                cells.append(f"**{seconds:.2g}**")
            else:
                cells.append("" if choice is None else f"{choice.seconds:.2g}")
        lines.append(f"| {' | '.join([clip, *cells])} |")
    return "\n".join(lines)


def missing(wanted: Table) -> list[str]:
    """Cells for memory.py to measure, so that the whole table is: of each plan the one with the least memory.

    Those of a clip follow each other, the largest first.
    """
    cells = []
    for clip in CLIPS:
        plans: dict[Plan, str] = {}
        for free in FREE:
            choice = choose(wanted, clip, free)
            if choice is not None and measured(wanted, clip, free, choice) is None:
                cap = "0" if free == WHOLE else f"{free} {wanted.ram / 1e9:.1f}"
                plans.setdefault(choice.plan, f"{clip} {wanted.precision} {cap}")
        cells += reversed(plans.values())
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path, help="a file that memory.py wrote")
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--missing", action="store_true", help="print the cells to measure, for memory.py's --cells")
    parser.add_argument("--ram", type=float, default=64.0, help="main memory that is free, in GB of 2**30 bytes")
    options = parser.parse_args()
    rows = json.loads(options.report.read_text(encoding="utf-8"))["rows"]
    wanted = Table(rows, options.model, options.precision, int(options.ram * 2**30))
    print(shlex.join(missing(wanted)) if options.missing else table(wanted))


if __name__ == "__main__":
    main()

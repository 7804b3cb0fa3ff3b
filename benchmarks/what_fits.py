"""Which clips fit which cards, and at which pace: what the planner expects, with what was measured in its place.

python benchmarks/what_fits.py benchmarks/results/memory-h100.json --precision fp8 --ram 64

Prints Markdown. The rates are those of the card in the file; what is free of its memory is that of each column. A model's
file is taken to hold 16 bits outside of the blocks, as most do.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks.material import MODELS, Clip  # noqa: E402
from wan_train.core.memory.card import Card  # noqa: E402
from wan_train.core.memory.plan import Bucket, Plan, Task, num_tokens  # noqa: E402
from wan_train.core.memory.planner import Planner  # noqa: E402
from wan_train.core.memory.sizes import rest_bytes  # noqa: E402
from wan_train.core.train.planning import GRAPH_SIZE  # noqa: E402

WHOLE = 78  # what a card of 80 GB has free, whose cells without a cap are measured
FREE = (6, 8, 12, 16, 24, 32, 48, WHOLE)  # GB of 2**30 bytes that are free on a card
CLIPS = (
    *("512x512x1", "768x768x1", "1024x1024x1"),
    *("512x512x33", "512x512x41", "512x512x81", "832x480x33", "832x480x41", "832x480x81", "1280x720x81"),
)


def expected(card: Card, model: str, precision: str, clip: str) -> float | None:
    """Seconds of a step; None where the clip does not fit."""
    sizes, bucket = MODELS[model], Bucket(Clip.parse(clip).latent_shape(MODELS[model]))
    graphs = num_tokens(sizes, bucket) * sizes.dim <= GRAPH_SIZE
    planner = Planner(
        task=Task(sizes=sizes, rest_bytes=rest_bytes(sizes) // 2, graphs=graphs),
        buckets=[bucket],
        card=card,
        plan=Plan(precision=precision, compile="static"),
    )
    choice = planner.choose()
    return None if choice is None else choice.seconds


def measured(rows: list[dict[str, Any]], model: str, precision: str, clip: str, free: int, ram: float) -> float | None:
    """Seconds of a step with so much of the card, if it was measured, and in no more main memory, nor held to less."""
    wanted = {"model": model, "precision": precision, "shape": clip, "cap_gb": 0 if free == WHOLE else free}
    for row in rows:
        same = all(row[name] == value for name, value in wanted.items()) and not row.get("held_ram_gb")
        if same and row.get("ours_s") and row["ram_gb"] * 1e9 <= ram * 2**30:
            return row["ours_s"]
    return None


def table(report: dict[str, Any], model: str, precision: str, ram: float) -> str:
    """Clips against what is free of a card; what was measured is bold."""
    rows = report["rows"]
    card = Card(**max((row["card"] for row in rows if row.get("card")), key=lambda card: card["attention"]))
    card = replace(card, free_ram=int(ram * 2**30), pinnable_ram=int(ram * 2**30))
    lines = [f"| {' | '.join(['Clip', *(f'{free} GB' for free in FREE)])} |", "|---|" + "---:|" * len(FREE)]
    for clip in CLIPS:
        cells = []
        for free in FREE:
            seconds = measured(rows, model, precision, clip, free, ram)
            if seconds is None:
                seconds = expected(replace(card, free=free * 2**30), model, precision, clip)
                cells.append("" if seconds is None else f"{seconds:.2g}")
            else:
                cells.append(f"**{seconds:.2g}**")
        lines.append(f"| {' | '.join([clip, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path, help="a file that memory.py wrote")
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--ram", type=float, default=64.0, help="main memory that is free, in GB of 2**30 bytes")
    options = parser.parse_args()
    report = json.loads(options.report.read_text(encoding="utf-8"))
    print(table(report, options.model, options.precision, options.ram))


if __name__ == "__main__":
    main()

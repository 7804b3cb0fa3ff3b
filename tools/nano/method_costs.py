"""What a step of a method costs beside one of a plain LoRA, at the width of the 14B model.

A step of the nano models is nearly all launches of kernels, so its seconds say nothing of a large model.
`benchmarks/method_memory.py` trains each method on a few blocks of 14B's width; the seconds that it has kept are taken here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .family import Files
from .methods import PLAIN

MEASURED = Files().root.parent / "benchmarks" / "results" / "method-memory-h200.json"
PRECISION = "bf16"
SAME = ("adapter lora", "optimizer adamw", "loss mse", "weighting none")  # rows of the plain LoRA's very own training


def read_costs(path: Path = MEASURED) -> dict[str, float]:
    """By row of that bench: seconds a step over those of the plain LoRA; {} where there is no file."""
    return costs_of(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else {}


def costs_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same of rows. All are of one clip: the largest for which the plain LoRA's seconds are there."""
    by_clip: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("precision") == PRECISION and row.get("step_s"):
            by_clip.setdefault(row["clip"], {})[row["method"]] = row["step_s"]
    clips = [clip for clip, seconds in by_clip.items() if PLAIN in seconds]
    if not clips:
        return {}
    seconds = by_clip[max(clips, key=lambda clip: math.prod(map(int, clip.split("x"))))]
    return {method: own / seconds[PLAIN] for method, own in seconds.items()}


def spread_in_words(costs: Mapping[str, float]) -> str:
    """How far a cost may be off, by those that are 1 but for chance; "" where none of them is known."""
    same = [costs[name] for name in SAME if name in costs]
    if not same:
        return ""
    least, most = min(1.0, *same), max(1.0, *same)
    return f"The plain LoRA's own training, taken {len(same) + 1} times, has costs of {least:.2f} to {most:.2f}."

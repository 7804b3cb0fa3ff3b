"""Predictions against steps that ran: H200s and H100s, torch 2.11, compiled blocks."""

import json

import pytest
from wan_train.benchmarks.fit_constants import RESULTS, Cell, make_card, memory_cell, read_steps
from wan_train.benchmarks.material import MODELS
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Plan, Task

# What steps took under one plan each, and what the memory benchmark has measured under caps: with weights in main memory,
# since the rate of a disk is assumed.
STEPS = list(read_steps(RESULTS / "steps.json"))
CELLS = [
    memory_cell(row, "H100")
    for row in json.loads((RESULTS / "memory-h100.json").read_text(encoding="utf-8"))["rows"]
    if row.get("ours_s") and not row["held_ram_gb"]
]
# A plan of the 14B model that ran out of memory: what it would have taken at the least, in GB.
FAILED = [((16, 9, 60, 104), {"checkpointing": False}, 149.0)]


def name(cell: Cell) -> str:
    return f"{cell.card.attention / 1e12:.0f} {cell.bucket.shape} {cell.plan.precision} {cell.gigabytes}"


@pytest.mark.parametrize("cell", [*STEPS, *CELLS], ids=name)
def test_memory_and_time_of_steps_that_ran(cell: Cell):
    found = estimate(cell.task, cell.bucket, cell.plan, cell.card)
    assert 0.96 * cell.gigabytes < found.vram / 1e9 < 1.07 * cell.gigabytes
    assert found.seconds == pytest.approx(cell.seconds, rel=0.11)


@pytest.mark.parametrize(("shape", "plan", "at_least"), FAILED, ids=str)
def test_memory_of_steps_that_did_not(shape, plan, at_least):
    rates = json.loads((RESULTS / "steps.json").read_text(encoding="utf-8"))["rates"]["H200"]
    plan = Plan(precision="fp8", compile="static", **plan)
    found = estimate(Task(sizes=MODELS["14b"]), Bucket(shape), plan, make_card("NVIDIA H200", rates))
    assert found.vram / 1e9 > at_least

"""What the memory benchmark makes of its rows; the measuring needs a GPU."""

from wan_train.benchmarks.memory import Cell, compare, table


def row(cap_gb, **fields):
    cell = {"model": "14b", "shape": "832x480x33", "precision": "fp8", "cap_gb": cap_gb, "cap_ram_gb": 0.0}
    return {**cell, "plan": "a plan", "peak_reserved_gb": 7.5, "ram_gb": 21.0, **fields}


def test_rows_are_compared_with_the_step_without_a_cap():
    rows = [row(8.0, ours_s=3.0), row(0.0, ours_s=2.5), row(6.0, plan=None, why="too small"), row(7.0)]
    compare(rows)
    assert [r["resident_s"] for r in rows] == [2.5] * 4
    lines = table(rows).splitlines()[2:]
    assert "| none | 2.50 | 1.00x |" in lines[0]
    assert "| 6 | does not fit |" in lines[1]
    assert lines[1].endswith("| too small |")
    assert "| 7 | out of memory |" in lines[2]
    assert "| 8 | 3.00 | 1.20x | 7.5 | 21.0 | a plan |" in lines[3]


def test_a_cell_is_read():
    assert Cell.parse("832x480x33 fp8 8 24") == Cell("832x480x33", "fp8", 8.0, 24.0)

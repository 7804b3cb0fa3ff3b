"""The table of what fits: more memory is never slower, and what was measured stands in the place of what is expected."""

import json
from itertools import pairwise
from pathlib import Path

from wan_train.benchmarks.what_fits import CLIPS, FREE, table

REPORT = Path(__file__).resolve().parents[2] / "benchmarks/results/memory-h100.json"


def cells(text):
    """Of each clip, what stands in its row."""
    rows = [line.strip("|").split("|") for line in text.splitlines()[2:]]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_expected_and_measured_cells():
    report = json.loads(REPORT.read_text())
    found = cells(table(report, "14b", "fp8", ram=64))
    assert list(found) == list(CLIPS)
    (row,) = [row for row in report["rows"] if (row["shape"], row["cap_gb"]) == ("832x480x33", 12.0)]
    assert found["832x480x33"][FREE.index(12)] == f"**{row['ours_s']:.2g}**"
    assert found["832x480x33"][0] == ""  # 6 GB do not do
    report["rows"] = [{**row, "ours_s": None} for row in report["rows"]]
    for row in cells(table(report, "14b", "fp8", ram=64)).values():
        numbers = [float(cell) for cell in row if cell]
        assert all(row[-len(numbers) :])  # what fits some memory fits more
        assert all(more <= less * 1.06 for less, more in pairwise(numbers))


def test_less_main_memory_fits_less():
    report = json.loads(REPORT.read_text())
    large, small = (cells(table(report, "14b", "fp8", ram=ram))["1280x720x81"] for ram in (64, 32))
    assert sum(map(bool, small)) < sum(map(bool, large))

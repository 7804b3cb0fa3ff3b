"""The table of what fits: more memory is never slower, and what was measured stands in the place of what is expected."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from wan_train.benchmarks import what_fits

REPORT = Path(__file__).resolve().parents[2] / "benchmarks/results/memory-h100.json"
SHORT, LONG = "832x480x33", "1280x720x81"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(what_fits, "CLIPS", (SHORT, LONG))
    monkeypatch.setattr(what_fits, "FREE", (6, 12, 24, 48))
    return json.loads(REPORT.read_text())


def cells(report, ram):
    """Of each clip, what stands in its row."""
    text = what_fits.table(what_fits.Table(report["rows"], "14b", "fp8", ram * 2**30))
    rows = [line.strip("|").split("|") for line in text.splitlines()[2:]]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_expected_and_measured_cells(report):
    same = (SHORT, "fp8", 12.0)
    at_12 = [r for r in report["rows"] if (r["shape"], r["precision"], r["cap_gb"]) == same and r.get("rank", 16) == 16]
    (row,) = [row for row in at_12 if not row["held_ram_gb"]]
    assert len(at_12) == 2  # the other with less main memory than the table is for
    report["rows"].sort(key=lambda row: -row["held_ram_gb"])
    report["rows"].append({**row, "rank": 64, "ours_s": 9.9})  # which the table is not for
    found = cells(report, ram=64)
    assert found[SHORT][1] == f"**{row['ours_s']:.2g}**"
    assert found[LONG][:2] == ["", ""]
    report["rows"] = [{**row, "ours_s": None} for row in report["rows"]]
    for row in cells(report, ram=64).values():
        numbers = [float(cell) for cell in row if cell]
        assert len(numbers) > 1
        assert all(row[-len(numbers) :])  # what fits some memory fits more
        assert all(more <= less * 1.06 for less, more in pairwise(numbers))


def test_what_was_measured_without_a_cap_is_of_the_whole_card(report, monkeypatch):
    monkeypatch.setattr(what_fits, "FREE", (48, what_fits.WHOLE))
    (row,) = [r for r in report["rows"] if (r["shape"], r["precision"], r["cap_gb"]) == (SHORT, "fp8", 0.0)]
    assert cells(report, ram=64)[SHORT][1] == f"**{row['ours_s']:.2g}**"


def test_less_main_memory_fits_less(report):
    large, small = (cells(report, ram)[LONG] for ram in (64, 32))
    assert sum(map(bool, small)) < sum(map(bool, large))


def test_a_plan_is_measured_once(report, monkeypatch):
    """24 and 32 GB get the same plan for a small image: what was measured with less memory is for both."""
    monkeypatch.setattr(what_fits, "CLIPS", ("512x512x1",))
    monkeypatch.setattr(what_fits, "FREE", (24, 32))
    report["rows"] = [row for row in report["rows"] if row["shape"] != "512x512x1"]
    wanted = what_fits.Table(report["rows"], "14b", "fp8", 64 * 2**30)
    (cell,) = what_fits.missing(wanted)
    assert cell == "512x512x1 fp8 24 68.7"
    plan = what_fits.choose(wanted, "512x512x1", 24).plan
    row = {"model": "14b", "precision": "fp8", "shape": "512x512x1", "cap_gb": 24.0, "ours_s": 0.123, "ram_gb": 3.0}
    report["rows"].append({**row, "memory": asdict(plan)})
    assert what_fits.missing(wanted) == []
    assert cells(report, ram=64)["512x512x1"] == ["**0.12**", "**0.12**"]
    report["rows"][-1]["memory"]["ffn_pieces"] = 8  # another plan than that of 32 GB
    assert what_fits.missing(wanted) == ["512x512x1 fp8 32 68.7"]

"""The constants of the predictions are what the script makes of the cells in the repository, and so are the errors told."""

import json
from dataclasses import fields, replace

import pytest
from wan_train.benchmarks import fit_constants
from wan_train.benchmarks.fit_constants import PACK, errors_of, fit, made, read_cells, split, table
from wan_train.core.plan.constants import PATH, Constants, constants, read_constants, using
from wan_train.core.plan.estimate import estimate


@pytest.fixture(scope="module")
def cells():
    return read_cells()


@pytest.fixture(scope="module")
def content():
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_the_file_is_what_the_script_gives(cells, content):
    found = made(content, cells)
    assert found["constants"] == content["constants"]
    assert found["cells"] == content["cells"]
    assert found["held_out"] == content["held_out"]
    for device, errors in found["held_out_of_a_new_fit"].items():  # its last digits are the linear algebra's
        assert errors == pytest.approx(content["held_out_of_a_new_fit"][device], abs=2e-3)


def test_the_readme_tells_the_errors(content):
    text = (PACK / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert table(content["held_out"]) in text
    assert table(content["held_out_of_a_new_fit"]) in text


def test_every_constant_says_what_it_means_and_where_it_is_from(content):
    assert set(content["constants"]) == {field.name for field in fields(Constants)}
    assert all(entry["meaning"] and entry["origin"] for entry in content["constants"].values())


def test_of_every_card_a_quarter_is_held_out(cells):
    fitting, held_out = split(cells)
    assert len(fitting) + len(held_out) == len(cells)
    for device in {cell.device for cell in cells}:
        number = sum(cell.device == device for cell in cells)
        assert sum(cell.device == device for cell in held_out) == number // 4 > 10


def test_predictions_follow_the_constants(cells):
    cell, now = cells[0], constants()
    with using(replace(now, sustained=now.sustained / 2)):
        slow = estimate(cell.task, cell.bucket, cell.plan, cell.card)
    assert slow.seconds > 1.2 * estimate(cell.task, cell.bucket, cell.plan, cell.card).seconds
    assert constants() is now


def test_a_fit_finds_constants_again_by_cells_that_they_made(cells):
    true = read_constants()
    with using(true):
        exact = [
            replace(cell, gigabytes=found.vram / 1e9, seconds=found.seconds)
            for cell in cells
            for found in [estimate(cell.task, cell.bucket, cell.plan, cell.card)]
        ]
    wrong = replace(true, sustained=0.95, compiled_peak=-10.0)
    found = fit(exact, wrong, ["sustained", "compiled_peak"])
    assert found.sustained == pytest.approx(true.sustained, rel=0.02)
    assert abs(found.compiled_peak - true.compiled_peak) < abs(
        wrong.compiled_peak - true.compiled_peak
    )  # and drawn back
    off, again = errors_of(exact, wrong), errors_of(exact, found)
    assert all(again[device]["seconds"] < 0.2 * off[device]["seconds"] for device in off)


def test_constants_that_are_clearly_worse_are_replaced(cells, content, monkeypatch):
    entries = dict(content["constants"])
    entries["sustained"] = {**entries["sustained"], "value": 0.6}
    found = made({**content, "constants": entries}, cells)
    assert found["constants"]["sustained"]["value"] > 0.75
    monkeypatch.setattr(fit_constants, "BETTER", 0.0)
    assert made({**content, "constants": entries}, cells)["constants"] == entries

"""The loss chart as a person works with it: more curves, another run beside it, a part of it, a picture and a table."""

import csv
from pathlib import Path
from typing import Any

import pytest
from wan_train.tests.browser.desk import Desk
from wan_train.tests.host.graphs import Json, one_stage

NUMBERS, LEGEND, PLOT, TIP = ".wan-train-controls", ".wan-train-legend", ".wan-train-plot", ".wan-train-tip"


def trained(desk: Desk, **options: Any) -> Json:
    """A short training, to its end; the ids of its nodes."""
    ids = desk.load_prompt(one_stage(lora_name="charted", steps=40, seed=173, **options))
    train = ids["high_train"]
    desk.queue()
    desk.page.wait_for_function(
        "(id) => nodeOf(id).properties.wan_run", arg=train
    )  # before, an older run of its name is shown
    desk.until(train, "finished")
    return ids


def controls(desk: Desk, train: int) -> Any:
    desk.look_at(train)
    return desk.part(train, NUMBERS)


def open_menu(desk: Desk, train: int, name: str) -> None:
    controls(desk, train).query_selector(f"summary:text-is('{name}')").click()


def saved(desk: Desk, train: int, button: str, tmp_path: Path) -> Path:
    open_menu(desk, train, "Save")
    with desk.page.expect_download() as download:
        controls(desk, train).query_selector(f"button:text-is('{button}')").click()
    open_menu(desk, train, "Save")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.grid(5, "the page")
@pytest.mark.renderer("vue")
def test_two_runs_are_compared_and_a_part_is_looked_at(desk: Desk, tmp_path: Path):
    trained(desk, rank=2, alpha=2.0)
    train = trained(desk)["high_train"]
    head = desk.text(train)
    assert "step 40 of 40" in head
    assert "smoothed loss" in head

    open_menu(desk, train, "Curves")
    for name in ("loss by noise level", "learning rate", "gradient norm"):
        controls(desk, train).query_selector(f"label:has-text('{name}') input").check()
    desk.until(train, "gradient norm", LEGEND)
    assert desk.text(train, LEGEND).count("sigma 0.") == 5
    open_menu(desk, train, "Compare")
    desk.page.wait_for_function("(id) => partOf(id, 'label[title^=charted]')", arg=train)
    controls(desk, train).query_selector("label[title^=charted] input").check()
    assert "rank 2 (here 4)" in desk.until(train, "charted high, smoothed loss", LEGEND)
    open_menu(desk, train, "Compare")

    plot = desk.part(train, PLOT)
    box = plot.bounding_box()
    y = box["y"] + box["height"] / 2
    desk.page.mouse.move(box["x"] + box["width"] * 0.4, y)
    assert desk.until(train, "smoothed loss", TIP).startswith("step ")
    desk.page.mouse.down()
    desk.page.mouse.move(box["x"] + box["width"] * 0.6, y, steps=4)
    desk.page.mouse.up()
    whole = (
        "[...partOf(id, '.wan-train-controls').querySelectorAll('button')].find((b) => b.textContent === 'Whole run')"
    )
    desk.page.wait_for_function(f"(id) => !{whole}.hidden", arg=train)
    desk.open()  # what was chosen is chosen still
    desk.until(train, "gradient norm", LEGEND)
    desk.until(train, "rank 2 (here 4)", LEGEND)
    desk.page.wait_for_function(f"(id) => !{whole}.hidden", arg=train)
    picture = saved(desk, train, "Picture (PNG)", tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with saved(desk, train, "Table (CSV)", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows][-1] == 40
    assert all(float(row["loss"]) > 0 for row in rows if row["step"] != "0")

"""docs/guides.md: what it names exists, and each of its rows says how."""

import re
from pathlib import Path

import pytest
from wan_train.core.importers.declared import options_by_place
from wan_train.core.recipe.recipe import Recipe

PAGE = Path(__file__).parents[3] / "docs" / "guides.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in re.sub(r"\| \|(?= )", "|  |", PAGE.read_text(encoding="utf-8")).splitlines()
    if line.startswith("| ") and not line.startswith(("| The guide", "| Word"))
]
ROWS = [row for row in ROWS if len(row) > 2]
HOW = ("works", "differs", "by itself", "not here")
COMMANDS = ("wantrain import", "wantrain run", "wantrain push")


def test_there_are_rows():
    assert len(ROWS) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_what_exists(row):
    known = {*options_by_place(), *Recipe.__dataclass_fields__, *COMMANDS}
    assert row[2] in HOW
    assert set(re.findall(r"`([^`]+)`", row[1])) <= known
    elsewhere = re.findall(r"`([a-z]+\.[a-z_]+)`", row[3] if len(row) > 3 else "")
    assert set(elsewhere) <= known
    assert row[1] if row[2] == "works" else True
    assert row[2] != "not here" or not row[1]


def test_values_it_names_are_choices():
    places = {"ara": "precision", "fp8": "precision", "shifted_uniform": "timesteps.sampling", "even": "dataset.frame_sampling",
              "auto_shift": "timesteps.sampling", "soft_l1": "loss.kind", "pseudo_huber": "loss.kind",
              "paged_lion8bit": "optimizer.name", "squeezed": "timesteps.window", "trigger": "dataset.caption_source",
              "sidecar": "dataset.caption_source", "weighted": "loss.weighting"}  # fmt: skip
    text = PAGE.read_text(encoding="utf-8")
    for value, place in places.items():
        assert f"`{value}`" in text
        assert value in map(str, options_by_place()[place].choices), (value, place)

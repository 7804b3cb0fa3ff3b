from xml.etree import ElementTree

import pytest
from wan_train.core.errors import ConfigError
from wan_train.tools.nano.method_plot import draw
from wan_train.tools.nano.method_rows import MethodRows
from wan_train.tools.nano.method_runs import COLUMNS
from wan_train.tools.nano.method_table import beyond_chance, found_in, gaps, table
from wan_train.tools.nano.pairs import MAIN_PAIR


def run(method, seed, look, *, seconds=10.0, losses=(2.0, 1.0), scores=(0.0, 100.0)):
    """Two marks of a run, at whose first half as much was learnt."""
    rows = []
    for number, (loss, score) in enumerate(zip(losses, scores, strict=True), start=1):
        values = dict.fromkeys(COLUMNS, "0.5") | {
            "method": method, "group": "x", "pair": MAIN_PAIR, "seed": str(seed), "step": str(number * 10),
            "seconds": str(seconds * number / 2), "look": str(look * number / 2), "held_out": str(loss),
            "score": str(score), "is_end": str(number - 1), "key": f"{method} {seed}",
        }  # fmt: skip
        rows.append(values)
    return rows


def rows_of(*runs):
    return [row for each in runs for row in each]


ENDS = {"look": lambda one: one.ends("look")}


def test_a_difference_counts_that_is_larger_than_what_seeds_make():
    rows = rows_of(
        *(run("baseline", seed, look) for seed, look in enumerate((0.5, 0.6, 0.7))),
        *(run("rank 4", seed, look) for seed, look in enumerate((0.12, 0.2, 0.31))),
        *(run("rank 32", seed, look) for seed, look in enumerate((0.52, 0.6, 0.69))),
    )
    found = found_in(rows)
    assert gaps(found, ENDS["look"])["rank 4"] == pytest.approx([-0.38, -0.4, -0.39])
    sure = beyond_chance(found, ENDS["look"])
    assert sure == {"rank 4": pytest.approx(-0.39)}
    noisy = rows_of(*(run("rank 64", seed, look) for seed, look in enumerate((0.0, 1.0, 0.4))))
    assert beyond_chance(found_in([*rows, *noisy]), ENDS["look"]) == {}


def test_a_method_is_compared_with_what_it_names():
    rows = rows_of(run("baseline", 1, 0.9), run("no known clips", 1, 0.3), run("DOP 1, no known clips", 1, 0.4))
    assert gaps(found_in(rows), ENDS["look"])["DOP 1, no known clips"] == pytest.approx([0.1])


def test_at_equal_seconds_a_slower_method_has_made_fewer_steps():
    rows = rows_of(run("baseline", 1, 0.6), run("DOP 1", 1, 0.8, seconds=20.0), run("rank 4", 1, 0.6, seconds=5.0))
    found = found_in(rows)
    assert found["DOP 1"].at("look", 10.0) == {"1": pytest.approx(0.4)}
    assert found["DOP 1"].at("look", 15.0) == {"1": pytest.approx(0.6)}
    assert found["rank 4"].at("look", 10.0) == {"1": pytest.approx(0.6)}


def test_the_table_says_which_choice_of_checkpoint_is_best():
    rows = rows_of(
        run("baseline", 1, 0.8, losses=(1.0, 2.0), scores=(100.0, 50.0)),
        run("baseline", 2, 0.8, losses=(1.0, 2.0), scores=(50.0, 100.0)),
    )
    lines = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in table(rows).splitlines() if "|" in line}
    assert lines["the last"] == "80.0%"
    assert lines["lowest held-out loss"] == "40.0%"
    assert lines["highest score (loss and motion)"] == "60.0%"
    assert lines["the best of all, as the exam says"] == "80.0%"


def test_the_picture_has_a_line_for_each_method():
    rows = rows_of(*(run(name, seed, 0.5) for name in ("baseline", "rank 4", "DoRA") for seed in (1, 2)))
    root = ElementTree.fromstring(draw(rows))
    told = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"baseline", "rank 4", "DoRA"} <= set(told)
    assert float(root.get("width")) <= 880  # a README's width


def test_what_a_crash_left_of_a_run_is_dropped(tmp_path):
    path = tmp_path / "methods.csv"
    MethodRows(path).add(run("baseline", 1, 0.5))
    half, _ = run("rank 4", 1, 0.5)
    MethodRows(path).add([half])
    with path.open("a", encoding="utf-8") as file:
        file.write("DoRA,x,barred")
    again = MethodRows(path)
    assert again.keys == {"baseline 1"}
    again.add(run("rank 4", 1, 0.5))
    assert MethodRows(path).rows == rows_of(run("baseline", 1, 0.5), run("rank 4", 1, 0.5))
    path.write_text("other,columns\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="other columns"):
        MethodRows(path)

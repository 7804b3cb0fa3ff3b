import json
from xml.etree import ElementTree

import pytest
from wan_train.benchmarks import method_memory
from wan_train.benchmarks.material import Clip
from wan_train.core.errors import ConfigError
from wan_train.tools.nano.method_costs import SAME, costs_of, read_costs, spread_in_words
from wan_train.tools.nano.method_plot import draw
from wan_train.tools.nano.method_rows import MethodRows
from wan_train.tools.nano.method_runs import COLUMNS
from wan_train.tools.nano.method_table import at_equal_seconds, beyond_chance, found_in, gaps, table
from wan_train.tools.nano.methods import METHODS, PLAIN
from wan_train.tools.nano.pairs import MAIN_PAIR


def run(method, seed, look, *, losses=(2.0, 1.0), moves=(1.0, 1.0)):
    """Two marks of a run, at whose first half as much was learnt."""
    rows = []
    for number, (loss, moved) in enumerate(zip(losses, moves, strict=True), start=1):
        values = dict.fromkeys(COLUMNS, "0.5") | {
            "method": method, "group": "x", "pair": MAIN_PAIR, "seed": str(seed), "step": str(number * 10),
            "look": str(look * number / 2), "held_out": str(loss),
            "preview": str(moved), "is_end": str(number - 1), "key": f"{method} {seed}",
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


def test_at_equal_seconds_a_costlier_method_has_made_fewer_steps():
    rows = rows_of(*(run(name, 1, 0.8) for name in ("baseline", "DOP 1", "attention", "LoHa", "self attention")))
    found = found_in(rows)
    costs = {"lora": 1.0, "output preservation": 2.0, "adapter attention": 0.5, "": 3.0}
    values = at_equal_seconds("look", costs)
    assert values(found["baseline"]) == {"1": 0.8}
    assert values(found["DOP 1"]) == {"1": pytest.approx(0.4)}  # half its steps: its first mark
    assert values(found["attention"]) == {"1": 0.8}  # it has made no more than all its steps
    assert values(found["LoHa"]) == {}  # nothing is known of it, and nothing is made up
    costs["output preservation"] = 4 / 3
    assert at_equal_seconds("look", costs)(found["DOP 1"]) == {"1": pytest.approx(0.6)}  # half way to its second mark
    costs["output preservation"] = 4.0
    assert at_equal_seconds("kept", costs)(found["DOP 1"]) == {"1": pytest.approx(0.5)}  # from what the base has


def test_where_no_cost_is_known_the_columns_are_empty():
    rows = rows_of(*(run(name, seed, 0.8) for name in ("baseline", "DOP 1", "LoHa") for seed in (1, 2)))
    lines = [
        [cell.strip() for cell in line.split("|")]
        for line in table(rows, {"lora": 1.0, "output preservation": 2.0}).splitlines()
    ]
    head, cells = lines[0], {line[1]: line for line in lines if len(line) > 1}
    told = [head.index(name) for name in ("look at equal seconds", "cost of a step")]
    assert [[cells[name][place] for place in told] for name in ("baseline", "DOP 1", "LoHa")] == [
        ["80%", "1.00"], ["40% ▼", "2.00"], ["", ""],
    ]  # fmt: skip
    assert table(rows).count("| DOP 1 |") == 1


def measured(method, step_s, clip="960x960x1", **more):
    return {
        "method": method,
        "clip": clip,
        "precision": "bf16",
        **({} if step_s is None else {"step_s": step_s}),
        **more,
    }


def test_costs_are_those_of_the_largest_clip_that_has_the_plain_lora(tmp_path):
    rows = [
        measured("lora", 0.2), measured("output preservation", 0.5), measured("adapter dora", None),
        measured("lora", 0.01, "512x512x1"), measured("output preservation", 0.05, "512x512x1"),
        measured("adapter dora", 0.03, "512x512x1"),
        measured("output preservation", 9.0, "960x960x17"), measured("optimizer lion", 0.1, precision="fp8"),
    ]  # fmt: skip
    assert costs_of(rows) == {"lora": 1.0, "output preservation": 2.5}
    assert costs_of(rows[1:2]) == {}
    path = tmp_path / "memory.json"
    assert read_costs(path) == {}
    path.write_text(json.dumps({"device": "a card", "rows": rows}), encoding="utf-8")
    assert read_costs(path) == {"lora": 1.0, "output preservation": 2.5}


def test_how_far_costs_may_be_off_is_told():
    told = spread_in_words({"lora": 1.0, "adapter lora": 1.04, "loss mse": 0.98, "output preservation": 2.0})
    assert told == "The plain LoRA's own training, taken 3 times, has costs of 0.98 to 1.04."
    assert spread_in_words({"lora": 1.0}) == ""


def test_the_rows_of_the_same_training_are_that(tmp_path):
    bench = method_memory.Bench(tmp_path, "toy", 2)
    plain, *same = (bench.job(name, Clip(64, 64, 1), "bf16") for name in (PLAIN, *SAME))
    assert all(job == plain for job in same)


def test_every_method_names_a_row_of_the_bench_of_memory_or_none():
    assert {method.cost for method in METHODS.values()} - {""} <= set(method_memory.METHODS)
    assert METHODS["baseline"].cost == PLAIN in method_memory.METHODS


def test_the_table_says_which_choice_of_checkpoint_is_best():
    rows = rows_of(
        run("baseline", 1, 0.8, losses=(1.0, 1.5), moves=(0.5, 0.9)),
        run("baseline", 2, 0.8, losses=(1.0, 9.0), moves=(0.9, 1.2)),
    )
    lines = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in table(rows).splitlines() if "|" in line}
    assert lines["the last"] == "80.0%"
    assert lines["lowest held-out loss"] == "40.0%"
    assert lines["motion nearest to the sample's"] == "60.0%"  # the second of the first run, the first of the second
    assert lines["loss and motion, each as near as may be"] == "60.0%"  # as well
    assert lines["highest score"] == "60.0%"  # the second run's last has nine times the lowest loss
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

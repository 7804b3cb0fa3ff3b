import argparse
import math
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.adapters.setup import adapter_state
from wan_train.core.train.scores import score_of
from wan_train.tests.tools.nano.small import write_small_family
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit
from wan_train.tools.nano.compare import BEGIN, CURVES, END, PLACES, README, main, planned_runs, with_table
from wan_train.tools.nano.method_rows import read_rows
from wan_train.tools.nano.method_runs import Looking, MethodRun, Runner
from wan_train.tools.nano.method_table import SHARES
from wan_train.tools.nano.methods import METHODS
from wan_train.tools.nano.pairs import GRID, Pair
from wan_train.tools.nano.quick import held_out_loss

COMMON = (("loop.steps", "2"), ("loop.batch_size", "2"), ("clips", "2"), ("others", "2"))


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Models of four blocks, of which routes leave out two."""
    files = write_small_family(tmp_path_factory.mktemp("family"))
    size = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=4, text_dim=64)
    for seed, stage in enumerate(("high", "low")):
        save_file(wan_dit(size, seed), files.dit(stage), metadata=dit_metadata(size))
    return Runner.of(files, tmp_path_factory.mktemp("work"), Looking(prompts=1, marks=1), "cpu")


@pytest.mark.grid(8)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(runner, name):
    settings = MethodRun(METHODS[name], "barred+dive", 1, COMMON).settings()
    assert settings
    for stage, own in settings.items():
        pupil = runner.school.pupil(
            runner.school.job(stage, own, runner.school.data(Pair.of("barred+dive"), own, runner.folder))
        )
        before = adapter_state(pupil.model)
        runner.school.train(pupil, 2)
        after = adapter_state(pupil.model)
        assert any(not torch.equal(before[weight], after[weight]) for weight in before)
        assert math.isfinite(held_out_loss(pupil).loss)


@pytest.mark.parametrize("name", ["EMA .98", "schedulefree 1.5e-3", "high noise expert alone"])
def test_a_run_comes_to_its_rows(runner, name):
    rows = runner.rows(MethodRun(METHODS[name], "barred+dive", 1, COMMON))
    assert [(row["method"], row["step"], row["is_end"]) for row in rows] == [(name, "2", "1")]
    assert all(0 <= float(rows[0][share]) <= 1 for share in SHARES)
    assert all(float(rows[0][amount]) > 0 for amount in ("moves", "seconds", "held_out", "preview"))
    moves = float(rows[0]["preview"])  # of the only mark, whose held-out loss is the lowest
    assert float(rows[0]["score"]) == pytest.approx(score_of(1.0, 1.0, moves), rel=1e-3)


@pytest.mark.parametrize(
    "told",
    [
        ["--out", str(CURVES / "methods.csv")],
        ["--out", str(CURVES / "grid.csv"), "--pairs", "grid", "--methods", "baseline", "--set", "loop.steps=480"],
    ],
)
def test_the_rows_that_are_here_are_those_of_todays_settings_and_files(told, tmp_path, capsys):
    """Where this fails, all runs would be made again: either something that decides them changed, or their digest."""
    main([*told, "--work", str(tmp_path), "--total", "0", "--device", "cpu"])
    assert capsys.readouterr().out.startswith("0 runs of ")


@pytest.mark.grid(8, "benchmarks by their commands")
def test_rows_of_runs_side_by_side_and_on(runner, tmp_path, capsys):
    out = tmp_path / "methods.csv"

    def compare():
        main([
            "--out", str(out), "--methods", "baseline", "--seeds", "1", "2", "--processes", "2", "--device", "cpu",
            "--prompts", "1", "--marks", "2", "--family", str(runner.school.files.root), "--work", str(tmp_path / "work"),
            *(word for name, value in COMMON for word in ("--set", f"{name}={value}")),
        ])  # fmt: skip
        return read_rows(out), capsys.readouterr().out

    rows, told = compare()
    assert "2 runs of 2 are to be made." in told
    assert sorted((row["seed"], row["step"], row["is_end"]) for row in rows) == [
        ("1", "1", "0"), ("1", "2", "1"), ("2", "1", "0"), ("2", "2", "1"),
    ]  # fmt: skip
    again, told = compare()
    assert "0 runs of 2 are to be made." in told
    assert again == rows

    main(["--table", str(out)])
    assert "| baseline |  | 2 |" in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "methods.svg").getroot().tag.endswith("svg")


def run(name, seed):
    return MethodRun(METHODS[name], "barred+dive", seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "adapter.size=4"], "no setting 'adapter.size'"),
        (["--pairs", "star"], "no pair 'star'"),
        (["--pairs", "star+none"], "no pair 'star.none'"),
        (["--pairs", "star+dive:both"], "no pair 'star.dive:both'"),
        (["--methods", "rank 4", "--groups", "losses"], "none of the methods is in one of the groups"),
        (["--prompts", "0"], "at least 1 prompt, got 0"),
        (["--marks", "0"], "--marks is a number of times, at least 1; got 0"),
        (["--processes", "0"], "--processes is at least 1; got 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["--out", str(tmp_path / "methods.csv"), "--device", "cpu", *arguments])


def test_the_first_seed_of_all_methods_comes_first():
    options = argparse.Namespace(
        set=[], pairs=["barred+dive"], methods=["baseline", "rank 4"], groups=["baseline", "adapters"], seeds=[1, 2]
    )
    assert planned_runs(options) == [run("baseline", 1), run("rank 4", 1), run("baseline", 2), run("rank 4", 2)]
    grid = planned_runs(argparse.Namespace(**{**vars(options), "pairs": ["grid"], "methods": ["baseline"]}))
    assert [each.pair for each in grid] == [*GRID, *GRID]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.stem)
def test_the_readme_has_the_table_of_the_file(path):
    text = README.read_text(encoding="utf-8")
    begin, made = PLACES[path]
    assert begin in text
    assert with_table(text, made(read_rows(path)), begin) == text, f"run python -m tools.nano methods --table {path}"


def test_a_table_takes_its_place():
    other = f"<!-- other -->\nkept\n{END}\n"
    text = f"before\n{other}{BEGIN}\nold\n{END}\nafter\n{other}"
    assert with_table(text, "new") == f"before\n{other}{BEGIN}\nnew\n{END}\nafter\n{other}"

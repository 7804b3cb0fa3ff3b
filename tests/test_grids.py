"""Of grids a part is tried: which, and when all of it."""

import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from wan_train.tests.grids import chosen, is_whole_run, seed_of

PACK = Path(__file__).resolve().parents[1]
ONE_AXIS = [{"name": number} for number in range(10)]
TWO_AXES = [{"way": a, "memory": b} for a, b in product(range(9), range(6))]


def draws(items, share):
    return [chosen(items, share, random.Random(seed)) for seed in range(40)]


def test_of_one_axis_a_share_is_taken_and_over_time_all():
    taken = draws(ONE_AXIS, 3)
    assert {len(places) for places in taken} == {4}
    assert {place for places in taken for place in places} == set(range(10))
    assert draws(ONE_AXIS, 1) == [list(range(10))] * 40
    assert taken == draws(ONE_AXIS, 3)


def test_of_several_axes_each_value_is_taken():
    for places in draws(TWO_AXES, 6):
        assert {TWO_AXES[place]["way"] for place in places} == set(range(9))
        assert {TWO_AXES[place]["memory"] for place in places} == set(range(6))
        assert 9 <= len(places) <= 14
    assert {len(places) for places in draws(TWO_AXES, 3)} == {18}


def test_names_of_one_parametrization_are_one_axis():
    together = [{"steps": number, "shift": number, "model": 0} for number in range(10)]
    assert {len(places) for places in draws(together, 5)} == {2}


def test_who_names_a_file_or_a_test_gets_all_of_it():
    assert is_whole_run(["tests"], "", PACK)
    assert is_whole_run(["tests/core", "tests/host"], "", PACK)
    assert not is_whole_run(["tests"], "resume", PACK)
    assert not is_whole_run(["tests", "tests/test_grids.py"], "", PACK)
    assert not is_whole_run(["tests/test_grids.py::test_x"], "", PACK)


def test_each_commit_has_its_own_number(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    assert seed_of(tmp_path) == 0
    git("init")
    found = set()
    for name in "ab":
        git("commit", "--allow-empty", "-m", name)
        found.add(seed_of(tmp_path))
        assert seed_of(tmp_path) in found
    assert len(found) == 2


@pytest.fixture
def collected(tmp_path):
    """What pytest runs of a grid of nine, of four tests that take turns, and of one other test: their names, and what it says.

    It has this pack's conftest.
    """
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "conftest.py").write_text((PACK / "tests" / "conftest.py").read_text(encoding="utf-8").replace(
        "Path(__file__).resolve().parent.parent", f"Path({str(PACK)!r})"), encoding="utf-8")  # fmt: skip
    (folder / "test_made.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.grid(3)\n@pytest.mark.parametrize('value', range(9))\ndef test_grid(value):\n    pass\n\n"
        + "".join(f"@pytest.mark.grid(2, 'in turns')\ndef test_turn_{name}():\n    pass\n\n" for name in "abcd")
        + "def test_other():\n    pass\n",
        encoding="utf-8",
    )

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return {word for word in done.stdout.split() if word.startswith("test_made.py::")}, done.stdout

    return run


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["alone", "side by side"])
def test_a_run_tries_a_part_and_says_which(collected, processes):
    names, said = collected("--seed", "5", *processes)
    kinds = [name.partition("::test_")[2].partition("_")[0].partition("[")[0] for name in names]
    assert {kind: kinds.count(kind) for kind in kinds} == {"grid": 3, "turn": 2, "other": 1}
    assert "8 combinations of grids were left to other runs: --seed 5 tries the same part, --grids all." in said


def test_of_tests_that_take_turns_one_may_be_alone_in_its_folder(collected, tmp_path):
    """The others are in folders that are not run."""
    (tmp_path / "made" / "test_alone.py").write_text(
        "import pytest\n\n@pytest.mark.grid(2, 'turns of others')\ndef test_it():\n    pass\n", encoding="utf-8"
    )
    assert "test_alone.py::test_it PASSED" in collected()[1]


def test_all_are_tried_where_they_are_asked_for(collected):
    names, said = collected("--grids")
    assert len(names) == 14
    assert len(collected("-p", "cacheprovider", "--lf")[0]) == 14
    assert "left to other runs" not in said
    assert len(collected("test_made.py")[0]) == 14

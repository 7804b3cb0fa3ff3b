import subprocess
import sys

import pytest
from wan_train.tools.nano.method_runs import MethodRun
from wan_train.tools.nano.methods import METHODS
from wan_train.tools.nano.side_by_side import Shift, alone_on, lead_worker

# What a worker says: it is ready, and then something to each run.
SPEAKS = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    seed = json.loads(line)["seed"]
    if seed == {ends_at}:
        {how}
    print(json.dumps({{"rows": [{{"seed": seed}}]}}), flush=True)
"""


def run(name, seed):
    return MethodRun(METHODS[name], "barred+dive", seed)


@pytest.fixture
def led(tmp_path):
    """Has a worker with this code; whether another is to go on after it; the shift; the seeds of what was done."""

    def lead(code):
        done = []
        shift = Shift([run("baseline", seed) for seed in (1, 2, 3)], 1000.0, lambda *told: done.append(told[1]))
        with (tmp_path / "log.txt").open("w", encoding="utf-8") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )  # fmt: skip
        with worker:
            goes_on = lead_worker(shift, worker, tmp_path / "log.txt")
            worker.stdin.close()
        return goes_on, shift, [row["seed"] for rows in done for row in rows]

    return lead


def test_a_worker_makes_all_runs(led):
    goes_on, shift, seeds = led(SPEAKS.format(ends_at=0, how="pass"))
    assert (goes_on, shift.runs, shift.failed, seeds) == (False, [], [], [1, 2, 3])


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("sys.exit(7)", "ended with the code 7"),
        ("raise MemoryError('the card is full')", "MemoryError: the card is full"),
        ("print(json.dumps({'error': 'no', 'ends': True}), flush=True); sys.exit()", "no"),
    ],
)
def test_one_that_ends_within_a_run_is_replaced_and_the_run_is_told(led, tmp_path, how, why):
    goes_on, shift, seeds = led(SPEAKS.format(ends_at=2, how=how))
    assert (goes_on, seeds) == (True, [1])
    assert shift.failed == [(run("baseline", 2), f"{why} (all of it: {tmp_path / 'log.txt'})")]
    assert shift.runs == [run("baseline", 3)]


def test_a_run_that_can_not_be_made_does_not_end_a_worker(led):
    how = "print(json.dumps({'error': 'no'}), flush=True); continue"
    goes_on, shift, seeds = led(SPEAKS.format(ends_at=2, how=how))
    assert (goes_on, seeds, shift.failed) == (False, [1, 3], [(run("baseline", 2), "no")])


def test_a_worker_that_can_not_start_is_not_replaced_and_says_why(led, tmp_path, capsys):
    goes_on, shift, seeds = led("import a_package_that_is_missing")
    assert (goes_on, len(shift.runs), seeds) == (False, 3, [])
    missing = "ModuleNotFoundError: No module named 'a_package_that_is_missing'"
    assert capsys.readouterr().out == f"a worker could not start: {missing} (all of it: {tmp_path / 'log.txt'})\n"


def test_a_worker_sees_its_own_gpu_alone():
    assert alone_on("cpu", {}) == ("cpu", {})
    assert alone_on("cuda", {}) == ("cuda", {})
    assert alone_on("cuda:1", {}) == ("cuda", {"CUDA_VISIBLE_DEVICES": "1"})
    assert alone_on("cuda:1", {"CUDA_VISIBLE_DEVICES": "5,7"}) == ("cuda", {"CUDA_VISIBLE_DEVICES": "7"})


def test_no_run_is_begun_that_would_not_end_in_time():
    added = []
    shift = Shift([run("baseline", 2), run("rank 4", 1), run("rank 64", 2)], 1000.0, lambda *done: added.append(done))
    shift.end(run("baseline", 1), {"rows": [{}]}, 900.0)
    shift.end(run("rank 4", 3), {"rows": [{}]}, 10.0)
    assert [each[0] for each in added] == [run("baseline", 1), run("rank 4", 3)]
    assert shift.take() == run("rank 4", 1)  # the baseline's would take 1125 s
    shift.started -= 500.0
    assert shift.take() is None  # of rank 64 nothing is known: 569 s, by the median
    assert shift.runs == [run("baseline", 2), run("rank 64", 2)]
    shift.end(run("rank 4", 1), {"error": "no"}, 1.0)
    assert shift.failed == [(run("rank 4", 1), "no")]
    assert len(added) == 2

"""Every method has a row, a dry run on the CPU, and what is made of a run's diary."""

import json

import pytest
from wan_train.benchmarks import method_memory
from wan_train.benchmarks.material import Clip
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.train.start import check_start
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.optimizers.helpers import need
from wan_train.tests.core.train.every_method import adapters, laws, optimizers
from wan_train.tests.core.train.test_every_method import BESIDE

GIB = 2**30
CLIP = Clip(64, 64, 1)
# What tests of every method call otherwise.
NAMES = {"contrastive": "contrastive guidance", "differential": "differential guidance", "dropout": "adapter dropout"}
NAMES |= {"lora plus": "optimizer lora plus", "clip by value": "optimizer clip by value"}


def test_every_method_that_is_tested_is_measured():
    kinds = [f"adapter {name}" for name in adapters()] + [f"optimizer {name}" for name in optimizers()]
    kinds += [name for name in laws() if name.startswith(("loss ", "weighting "))]
    wanted = {*kinds, *(NAMES.get(name, name) for name in BESIDE)}
    assert wanted <= method_memory.METHODS.keys()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return method_memory.Bench(tmp_path_factory.mktemp("bench"), "toy", 2)


@pytest.mark.grid(4)
@pytest.mark.parametrize("method", method_memory.METHODS)
def test_each_is_a_job_that_may_start(bench, method):
    optimizer = method.removeprefix("optimizer ")
    if optimizer in OPTIMIZERS.names:
        need(*OPTIMIZERS.get(optimizer).packages)
    job = bench.job(method, CLIP, "bf16")
    check_start(job, inspect(bench.model()))
    plain = bench.job("lora", CLIP, "bf16")
    same = {"lora", "adapter lora", "optimizer adamw", "loss mse", "weighting none"}
    assert (job == plain) == (method in same)


def test_a_dry_run_adds_what_is_missing(tmp_path, capsys):
    told = [
        "--small",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "rows.json"),
        "--clips",
        "64x64x1",
        "--steps",
        "1",
    ]
    method_memory.make(method_memory.read_options([*told, "--methods", "single pass"]))
    method_memory.make(method_memory.read_options([*told, "--methods", "single pass", "shared lora"]))
    method_memory.main(["--table", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]
    assert [(row["method"], row["steps"], row["reserved_gb"]) for row in rows] == [
        ("single pass", 1, None), ("shared lora", 1, None),
    ]  # fmt: skip
    assert "0 runs, 0 of them off by more than 7%." in capsys.readouterr().out


def test_the_peak_is_held_against_the_promise():
    events = [
        {"event": "plan", "vram": 9 * GIB, "overhead": GIB, "message": "a plan"},
        {"event": "step", "seconds": 3.0, "reserved_gib": 9.0, "allocated_gib": 8.0},
        {"event": "plan", "vram": GIB, "message": "leaner", "step": 1},
        {"event": "step", "seconds": 0.5, "reserved_gib": 9.9, "allocated_gib": 8.5},
    ]
    found = method_memory.measured(events)
    assert (found["promised_gb"], found["taken_gb"], found["allocated_gb"]) == (10.0, 10.9, 8.5)
    assert (found["off"], found["shortages"], found["steps"]) == (pytest.approx(0.09), 1, 2)
    assert found["step_s"] == 0.5  # the first step, in which libraries are loaded, is not in it
    near = {**found, "off": -0.02, "method": "lora", "clip": "64x64x1", "precision": "bf16"}
    far = {**found, "method": "dora", "clip": "64x64x1", "precision": "bf16"}
    failed = {"method": "loha", "clip": "64x64x1", "precision": "bf16", "error": "no"}
    lines = method_memory.table([near, failed, far]).splitlines()
    assert lines[2:4] == [
        "| dora | 64x64x1 | bf16 | 10.00 | 10.90 | +9.0% |",
        "| lora | 64x64x1 | bf16 | 10.00 | 10.90 | -2.0% |",
    ]
    assert lines[5:] == ["2 runs, 1 of them off by more than 7%.", "Failed: loha, 64x64x1, bf16: no"]

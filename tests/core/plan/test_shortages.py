"""What is kept of shortages: by kind and version, and what a planner makes of it."""

from dataclasses import replace

import pytest
from wan_train.core.plan.plan import Bucket, Plan, Task, is_graphed
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.shortages import Met, kind_of, read_met, write_met
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

PICTURES = {(16, 1, 120, 120): 1, (16, 1, 94, 152): 1}


def test_a_shortage_is_kept_by_kind_and_for_one_version(tmp_path):
    path = tmp_path / "shortages.json"
    task = Task(sizes=WanConfig())
    kinds = [
        kind_of(task, PICTURES, "fp8"),
        kind_of(task, PICTURES, "bf16"),
        kind_of(task, {(16, 1, 120, 120): 2, (16, 1, 94, 152): 1}, "fp8"),
        kind_of(replace(task, sizes=WanConfig(num_layers=30)), PICTURES, "fp8"),
        kind_of(replace(task, accumulation=2), PICTURES, "fp8"),
        kind_of(task, PICTURES, "fp8", budget=8.0),
    ]
    assert len(set(kinds)) == 6
    assert kinds[0] == kind_of(task, dict(reversed(PICTURES.items())), "fp8")
    write_met(path, kinds[0], "torch 2", Met(0.8, 0.9))
    write_met(path, kinds[1], "torch 2", Met(graphs=False))
    assert read_met(path, kinds[0], "torch 2") == Met(0.8, 0.9)
    assert read_met(path, kinds[1], "torch 2") == Met(graphs=False)
    assert read_met(path, kinds[2], "torch 2") == Met()
    assert read_met(path, kinds[0], "torch 3") == Met()
    write_met(path, kinds[0], "torch 2", Met())
    assert read_met(path, kinds[0], "torch 2") == Met()
    assert read_met(path, kinds[1], "torch 2") == Met(graphs=False)
    write_met(path, kinds[0], "torch 3", Met(0.8, 0.9))
    assert read_met(path, kinds[1], "torch 3") == Met()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"version": "1", "shortages": {"kind": {"share": 7, "failed": 1, "graphs": true}}}',
        '{"version": "1", "shortages": {"kind": 3}}',
        '{"kind": {"share": 0.5, "failed": 1, "graphs": true, "version": "1"}}',  # of before a file had one version
    ],
)
def test_a_damaged_file_says_nothing(tmp_path, content):
    path = tmp_path / "shortages.json"
    path.write_text(content)
    assert read_met(path, "kind", "1") == Met()
    write_met(path, "kind", "1", Met(0.5))
    assert read_met(path, "kind", "1") == Met(0.5)


def test_every_shortage_lowers_what_may_be_planned():
    met = Met().after(90, 80, 100)
    assert met == Met(0.8, 0.9)
    assert met.after(180, 190, 200) == met
    assert met.after(80, 60, 100) == Met(0.6, 0.8)


def test_only_a_plan_that_takes_as_much_as_what_failed_says_otherwise():
    met = Met().after(90, 80, 100)
    assert not met.is_refuted(89, 100)
    assert met.is_refuted(90, 100)
    assert met.is_refuted(180, 200)
    assert not Met(graphs=False).is_refuted(100, 100)


def test_a_plan_stays_below_what_ran_out_whatever_is_free():
    planner = Planner(
        task=Task(sizes=WanConfig(), graphs=True),
        buckets=[Bucket((16, 1, 64, 64))],
        card=replace(CARD, free=40 * 2**30),
        plan=Plan(precision="fp8", compile="static"),
    )
    plain = planner.choose()
    for free in (40 * 2**30, 30 * 2**30):
        careful = replace(planner, card=replace(planner.card, free=free), met=Met(0.4)).choose()
        assert careful.vram <= 0.4 * free < plain.vram
    without = replace(planner, met=Met(graphs=False))
    assert any(is_graphed(planner.task, plan) for plan in planner.plans())
    assert not any(is_graphed(planner.task, plan) for plan in without.plans())
    assert without.choose().plan.cuda_graphs == "off"

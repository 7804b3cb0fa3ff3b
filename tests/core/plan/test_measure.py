"""What the first steps of a run teach the next one."""

import time
from dataclasses import replace

import pytest
from wan_train.core.plan.card import Correction, read_correction
from wan_train.core.plan.measure import WARM_UP, Measure, correction_kind
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planner import Planner
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

PLANNER = Planner(
    task=Task(sizes=WanConfig()), buckets=[Bucket((16, 9, 60, 104))], card=CARD, plan=Plan(precision="fp8")
)


def measure(planner, choice, folder, monkeypatch, *, seconds, peak, calls=WARM_UP + 4):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    callback = Measure(planner, choice, folder=folder, peak=lambda: peak, num_steps=4)
    for number in range(calls):
        now[0] += 60.0 if number < WARM_UP else seconds  # the first ones compile
        callback(None, None)
    return read_correction(folder, CARD, correction_kind(planner), planner.version)


def test_the_next_prediction_is_right(tmp_path, monkeypatch):
    choice = PLANNER.choose()
    assert choice is not None
    (found,) = choice.estimates.values()
    peak = found.exact_vram + round(1.25 * (found.vram - found.exact_vram))
    correction = measure(PLANNER, lambda: choice, tmp_path, monkeypatch, seconds=1.5 * found.seconds, peak=peak)
    fitted = replace(PLANNER, correction=correction).describe(choice.plan)
    assert fitted.vram == pytest.approx(peak, rel=1e-6)
    assert fitted.seconds == pytest.approx(1.5 * choice.seconds, rel=1e-6)
    again = replace(PLANNER, correction=correction)
    now = again.describe(choice.plan)
    correction = measure(again, lambda: now, tmp_path, monkeypatch, seconds=now.seconds, peak=now.vram)
    assert (correction.memory, correction.time) == pytest.approx((1.25, 1.5), rel=1e-6)


def test_time_alone_where_memory_is_not_counted(tmp_path, monkeypatch):
    choice = PLANNER.choose()
    assert choice is not None
    correction = measure(PLANNER, lambda: choice, tmp_path, monkeypatch, seconds=0.8 * choice.seconds, peak=None)
    assert correction.memory == 1.0
    assert correction.time == pytest.approx(0.8, rel=1e-6)


def test_nothing_is_learnt_of_a_plan_that_changed_or_of_mixed_sizes(tmp_path, monkeypatch):
    choices = [PLANNER.describe(Plan(precision="fp8", streamed_blocks=n)) for n in range(8)]
    assert measure(PLANNER, lambda: choices.pop(), tmp_path, monkeypatch, seconds=99.0, peak=1, calls=7) == Correction()
    mixed = replace(PLANNER, buckets=[*PLANNER.buckets, Bucket((16, 1, 32, 32))])
    choice = mixed.describe(Plan(precision="fp8"))
    assert measure(mixed, lambda: choice, tmp_path, monkeypatch, seconds=99.0, peak=1) == Correction()
    assert not list(tmp_path.iterdir())

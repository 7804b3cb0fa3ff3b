"""The series of a run's chart, its table, and the runs that it can be compared with."""

import csv
import io
from dataclasses import replace

import pytest
from wan_train.core.train.curves import SERIES, CurvePart, CurveTable, other_runs, run_curves, sigma_note
from wan_train.core.train.events import EventWriter
from wan_train.core.train.history import read_long_history
from wan_train.core.train.run_folder import RunFolder


@pytest.fixture
def history(tmp_path):
    events = EventWriter(tmp_path / "events.jsonl")
    events.write("start", step=0)
    events.write("validation", step=0, loss=0.9)
    for step in range(1, 51):
        bins = [[step % 35, 1 / step, 1]]
        events.write("step", step=step, loss=1 / step, lr=1e-4, grad_norm=step / 10, sigma=0.5, bins=bins)
    events.write("validation", step=50, loss=0.4)
    events.write("start", step=40)
    events.write("step", step=41, loss=7.0, lr=2e-4, grad_norm=8.0, sigma=0.5, bins=[[0, 7.0, 1]])
    return read_long_history(events.path)


def test_all_series_of_a_part(job, history):
    found = run_curves(job, history, SERIES, CurvePart(first=40, window=1))
    assert found["loss"]["points"] == [(40, 1 / 40), (41, 7.0)]
    assert found["held_out"]["points"] == []
    assert found["learning_rate"]["points"] == [(40, 1e-4), (41, 2e-4)]
    assert found["gradient_norm"]["points"] == [(40, 4.0), (41, 8.0)]
    assert [(group["low"], group["high"]) for group in found["sigma"]] == [
        (0.0, 0.175), (0.175, 0.35), (0.35, 0.525), (0.525, 0.7), (0.7, 0.875),
    ]  # fmt: skip
    assert found["sigma"][0]["points"] == [(40, 1 / 40), (41, 7.0)]


def test_smoothing_is_as_wide_as_it_is_asked_for(job, history):
    ends = [
        run_curves(job, history, ("loss",), CurvePart(window=window))["loss"]["smoothed"][-1][1]
        for window in (1, 5, 500)
    ]
    assert ends[0] == 7.0
    assert ends[0] > ends[1] > ends[2]


def test_the_table_has_every_step_once(job, history):
    rows = list(csv.DictReader(io.StringIO("".join(CurveTable(job, history).lines()))))
    assert [int(row["step"]) for row in rows] == list(range(42))
    assert (rows[0]["loss"], rows[0]["held_out_loss"]) == ("", "0.9")
    assert float(rows[41]["loss"]) == float(rows[41]["loss_at_sigma_0_to_0.175"]) == 7.0
    assert float(rows[41]["gradient_norm"]) == 8.0


def test_older_diaries_say_that_their_noise_levels_are_means(job, tmp_path):
    events = EventWriter(tmp_path / "old.jsonl")
    events.write("step", step=1, loss=0.5, sigma=0.3)
    history = read_long_history(events.path)
    assert sigma_note(job, history) == ""
    assert "earlier version" in sigma_note(replace(job, loop=replace(job.loop, gradient_accumulation=2)), history)


def test_the_other_expert_is_the_first_to_compare_with(job, tmp_path):
    for number, (name, stage) in enumerate([("test", "low"), ("test", "high"), ("more", "low"), ("more", "high")]):
        folder = RunFolder(tmp_path / "runs" / f"{name}_{stage}_{number}")
        folder.path.mkdir(parents=True)
        folder.write_job(replace(job, name=name, stage=stage))
        EventWriter(folder.events_path).write("start", step=0)
    (tmp_path / "runs" / "empty").mkdir()
    found = other_runs(tmp_path / "runs", RunFolder(tmp_path / "runs" / "test_low_0"))
    assert (found[0].run, found[0].is_other_expert, found[0].steps) == ("test_high_1", True, 6)
    assert {one.run for one in found[1:]} == {"more_low_2", "more_high_3"}
    assert not any(one.is_other_expert for one in found[1:])

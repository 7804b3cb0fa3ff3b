"""From the command to the LoRA: a dry run on the CPU, and what is made of a run's diary."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from wan_train.benchmarks.datasets import BOUNDARIES, RunSettings, clips_of, label_of, shares, sizes_of_steps, write_run
from wan_train.benchmarks.lora_clock import Clock, longer, promised, read_peer, summarize, timeline
from wan_train.benchmarks.material import MODELS, Clip, write_checkpoint
from wan_train.benchmarks.time_to_lora import Run, add_row, known_row, table
from wan_train.core.errors import ConfigError
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder

PACK = Path(__file__).resolve().parents[2]
NAMES = {
    *("dataset", "precision", "cap_gb", "steps", "cold", "ours_s", "ours_first_step_s", "ours_step_s", "promised_s"),
    *("promised_gb", "peak_reserved_gb", "shortages", "peer", "peer_s", "peer_first_step_s", "peer_step_s"),
}


def step(number, time, seconds, reserved=10.0):
    memory = {"allocated_gib": reserved - 1, "reserved_gib": reserved}
    return {"event": "step", "step": number, "time": time, "seconds": seconds, **memory}


def plan(**fields):
    return {"event": "plan", "time": 101.0, "seconds": 2.0, "vram": 9 * 2**30, "message": "a plan", **fields}


EVENTS = [
    plan(start_seconds=5.0, sizes_seconds=3.0),
    step(1, 110.0, 6.0),
    step(2, 112.0, 2.0, 12.5),
    step(3, 113.0, 1.0),
]
EVENTS += [plan(step=3), {"event": "warning", "message": "slow"}, step(4, 116.0, 2.2), step(5, 118.0, 1.9)]
SIZES = ["clip", "clip", "picture", "clip", "clip"]
CLOCK = Clock(100.0, 121.0, 120.0, 11.2, {"worker": 104.0})


@pytest.mark.grid(8, "benchmarks by their commands")
def test_the_dry_run_writes_a_row_and_one_for_a_longer_run(tmp_path):
    out = tmp_path / "results" / "time.json"
    command = [sys.executable, str(PACK / "benchmarks" / "time_to_lora.py"), "--small", "--work", str(tmp_path)]
    asked = ["--run", "pictures steps=4 weights=fp32 cap=1", "--out", str(out)]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row, long = json.loads(out.read_text())["rows"]
    assert row.keys() >= NAMES
    assert (row["dataset"], row["steps"], row["cold"], row["cap_gb"], row["done_steps"]) == (
        "pictures",
        4,
        True,
        1.0,
        4,
    )
    assert row["ours_s"] > row["ours_first_step_s"] > row["worker_first_step_s"] > 0
    assert 0 < row["promised_gb"] < 1
    assert (row["shortages"], row["errors"], "extrapolated" in row) == (0, [], False)
    assert (long["steps"], long["extrapolated"]) == (1000, True)
    assert long["ours_s"] == pytest.approx(row["ours_s"] + 996 * row["ours_step_s"], abs=0.1)


def test_a_plan_promises_what_is_beside_the_steps_and_an_older_one_says_nothing_of_it():
    beside = {"validations": {"count": 2, "seconds": 1.5}, "previews": {"count": 1, "seconds": 20.0}}
    told = plan(start_seconds=5.0, sizes_seconds=3.0, beside=beside)
    assert promised(told, 10)["promised_s"] == 5 + 3 + 10 * 2.0 + 2 * 1.5 + 20
    assert promised(plan(start_seconds=5.0), 10)["promised_s"] == 25


def test_an_image_to_video_model_is_given_the_first_frame(tmp_path):
    model, folder = tmp_path / "i2v.safetensors", tmp_path / "runs" / "run"
    write_checkpoint(model, replace(MODELS["toy"], variant="i2v", in_dim=36))
    job = write_run(folder, tmp_path / "data", model, RunSettings(dataset="mixed", steps=2), small=True)
    assert (job.model.label, job.stage, job.timesteps.sigma_min) == ("wan2.2-i2v-a14b", "high", 0.9)
    batch = BatchSchedule.of(job.data, job.loop).load(0)
    assert batch.conditioning is not None
    shape = batch.latents.shape
    assert batch.conditioning.shape == (shape[0], 20, *shape[2:])
    run_job(RunFolder(folder), EventWriter(folder / "events.jsonl"), torch.device("cpu"), lambda: False)
    steps = [event for event in EventReader(folder / "events.jsonl").read() if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2]


@pytest.mark.parametrize(
    ("name", "label", "stage"),
    [
        ("14b", "wan2.2-t2v-a14b", "high"),
        ("i2v-14b", "wan2.2-i2v-a14b", "high"),
        ("1.3b", "wan2.1-t2v-1.3b", "single"),
        ("5b", "wan2.2-ti2v-5b", "single"),
    ],
)
def test_a_model_of_full_size_is_trained_as_what_it_is(name, label, stage):
    assert label_of(MODELS[name]) == label
    assert ("high" if label in BOUNDARIES else "single") == stage


def test_a_row_is_what_the_diary_says():
    row = summarize(EVENTS, SIZES, {"clip": 0.75, "picture": 0.25}, CLOCK, steps=5)
    assert (row["ours_s"], row["ours_first_step_s"], row["worker_first_step_s"], row["process_s"]) == (20, 10, 6, 21)
    assert row["sizes"] == {"clip": {"first_s": 6.0, "step_s": 2.0}, "picture": {"first_s": 1.0, "step_s": None}}
    assert row["ours_step_s"] == 2.0  # a size that came once has no steady step
    assert (row["promised_s"], row["promised_gb"], row["plan"]) == (5 + 3 + 5 * 2, 9.0, "a plan")
    assert (row["peak_reserved_gb"], row["peak_allocated_gb"], row["smi_gb"]) == (12.5, 11.5, 11.2)
    assert (row["shortages"], row["warnings"], row["done_steps"]) == (1, ["slow"], 5)
    assert row["off_s"] == pytest.approx(20 / 18 - 1, abs=1e-3)


def test_the_mean_step_is_by_the_shares_of_a_long_run():
    events = [step(number + 1, 100.0 + number, seconds) for number, seconds in enumerate((9, 9, 4, 4, 1))]
    sizes = ["clip", "picture", "clip", "clip", "picture"]
    row = summarize(events, sizes, {"clip": 0.25, "picture": 0.75}, replace(CLOCK, lora=None), steps=5)
    assert row["ours_step_s"] == 0.25 * 4 + 0.75 * 1
    assert row["ours_s"] is None
    assert longer({**row, "steps": 5}, 1000) is None


def test_a_longer_run_has_more_steady_steps_on_both_sides():
    row = {"steps": 5, **summarize(EVENTS, SIZES, {"clip": 1.0}, CLOCK, steps=5), "peer_s": 50.0, "peer_step_s": 4.0}
    found = longer(row, 105)
    assert (found["ours_s"], found["promised_s"], found["peer_s"]) == (20 + 200, 18 + 200, 50 + 400)
    assert found["extrapolated"]


def test_a_peer_has_times_of_its_own():
    lines = [
        {"shape": [1, 16, 1, 8, 8], "s": seconds, "time": 140.0 + at, "peak_reserved_gb": 2.147483648}
        for at, seconds in enumerate((9.0, 1.0, 1.2, 1.1))
    ]
    found = read_peer(lines, 100.0, 150.0)
    assert (found["peer_s"], found["peer_first_step_s"], found["peer_step_s"]) == (50.0, 40.0, 1.1)
    assert (found["peer_done_steps"], found["peer_peak_reserved_gb"]) == (4, 2.0)
    assert read_peer([], 100.0, None)["peer_s"] is None


def test_the_datasets_are_of_true_size():
    tokens = {
        str(clip): clip.tokens(MODELS["14b"]) for name in ("pictures", "mixed", "portrait") for clip in clips_of(name)
    }
    assert {tokens[name] for name in map(str, clips_of("pictures"))} == {3600, 3572, 3588}
    assert sum(clips_of("pictures").values()) == 20
    assert tokens["832x480x33"] == tokens["480x832x33"] == 14040
    assert (sum(clips_of("mixed").values()), sum(clips_of("portrait").values())) == (14, 16)


def test_the_job_has_every_sample_and_its_steps_are_known(tmp_path):
    model = tmp_path / "toy.safetensors"
    write_checkpoint(model, MODELS["toy"], torch.float32)
    recipe = RunSettings(dataset="mixed", steps=14, cap_gb=2.0, second=True)
    job = write_run(tmp_path / "run", tmp_path / "data", model, recipe, small=True)
    assert (len(job.data.samples), job.stage, job.memory.budget_gb) == (14, "low", 2.0)
    assert len({sample.latents_key for sample in job.data.samples}) == 14
    small = clips_of("mixed", small=True)
    steps = sizes_of_steps(job, 14)
    assert {
        Clip.parse(size): steps.count(size) for size in steps
    } == small  # an epoch has each as often as it has samples
    assert shares(job)["80x48x1"] == 2 / 14


def test_a_run_is_read_as_it_is_written():
    run = Run.parse("mixed steps=16 cap=8 precision=fp8 weights=fp8 compile=off warm")
    assert run.head == {
        "dataset": "mixed",
        "weights": "fp8",
        "precision": "fp8",
        "cap_gb": 8.0,
        "steps": 16,
        "cold": False,
        "start": "warm",
        "options": "compile=off",
    }
    assert run.recipe.options == {"compile": "off"}
    with pytest.raises(ValueError, match="no dataset 'films'"):
        Run.parse("films")
    with pytest.raises(ConfigError, match="speed"):
        Run.parse("mixed speed=high")


def test_a_row_takes_the_place_of_the_same_run(tmp_path, capsys):
    report = {"rows": []}
    head = {"model": "toy", **Run.parse("pictures steps=5").head}
    for lora in (120.0, 110.0):
        clock = replace(CLOCK, lora=lora)
        add_row(report, {**head, **summarize(EVENTS, SIZES, {"clip": 1.0}, clock, steps=5)}, tmp_path / "out.json")
    other = {"model": "toy", **Run.parse("pictures steps=5 warm").head}
    add_row(report, {**other, **summarize(EVENTS, SIZES, {"clip": 1.0}, CLOCK, steps=5)}, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["start"], row["steps"], row["ours_s"]) for row in rows] == [
        *(("cold", 5, 10.0), ("cold", 1000, 2000.0)),
        *(("warm", 5, 20.0), ("warm", 1000, 2010.0)),
    ]
    assert "| pictures | auto | none | 1,000 | cold | about 2000 s |" in table(rows)
    assert '"ours_s": 10.0' in capsys.readouterr().out


def test_each_setting_of_a_peer_has_a_row(tmp_path):
    head = {"model": "toy", **Run.parse("pictures steps=1000").head, "ours_s": 9.0}
    report = {"rows": [head]}
    for setting, seconds in (("compile=true", 3.0), ("compile=false", 4.0), ("compile=false", 5.0)):
        add_row(
            report, head | {"peer": "AI-Toolkit", "peer_setting": setting, "peer_s": seconds}, tmp_path / "out.json"
        )
    assert [(row["peer_setting"], row["peer_s"]) for row in report["rows"]] == [
        ("compile=true", 3.0),
        ("compile=false", 5.0),
    ]


def test_a_peer_alone_is_put_beside_ours_of_the_same_run():
    head = {"model": "toy", **Run.parse("pictures steps=5").head}
    report = {"rows": [{**head, "start": "warm", "ours_s": 1.0}, {**head, "ours_s": 2.0}]}
    assert known_row(report, head)["ours_s"] == 2.0
    with pytest.raises(SystemExit, match="leave out --no-ours"):
        known_row(report, head | {"steps": 6})


def test_a_timeline_is_in_the_order_of_the_clock():
    start = datetime(2026, 1, 2, 3, 4, 5).timestamp()  # a log has this machine's time
    log = "2026-01-02 03:04:07,250 INFO Reading the model took 1.0 s.\nno line of a log\n"
    events = [{"event": "step", "step": number, "time": start + 3.0 + number} for number in range(1, 6)]
    told = timeline(log, [{"event": "start", "step": 0, "time": start + 3.0}, *events], start)
    assert told == [
        (2.25, "Reading the model took 1.0 s."),
        (3.0, "start 0"),
        (4.0, "step 1"),
        (5.0, "step 2"),
        (8.0, "step 5"),
    ]


def test_accumulation_is_read_and_is_part_of_a_rows_name(tmp_path):
    run = Run.parse("small steps=8 accumulation=4 join_batches=off")
    assert run.recipe.accumulation == 4
    assert run.head["options"] == "accumulation=4 join_batches=off"
    write_checkpoint(tmp_path / "model.safetensors", MODELS["toy"], torch.float32)
    job = write_run(tmp_path / "run", tmp_path, tmp_path / "model.safetensors", run.recipe, small=True)
    assert (job.loop.gradient_accumulation, job.memory.join_batches) == (4, "off")

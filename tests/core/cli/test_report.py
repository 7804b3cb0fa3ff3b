"""What `wantrain doctor --report` prints: enough to reproduce a prediction, and nothing that belongs to a person."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wan_train.benchmarks.fit_constants import read_reports
from wan_train.core.cli.main import main
from wan_train.core.cli.report import cleaner, comfyui_version, impersonal, make_report, of_run, pack_version
from wan_train.core.errors import RunError
from wan_train.core.plan.decision import buckets_of
from wan_train.core.plan.estimate import estimate
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.events import EventReader, format_event
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.train.helpers import train_in_folder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, job: Job) -> RunFolder:
    """A planned run of one size, with a warning that names what is private."""
    samples = tuple(
        replace(s, name=f"my cat {n}.png", caption="a photo of zyx") for n, s in enumerate(job.data.samples)
    )
    data = replace(job.data, samples=samples[:1])
    loop = replace(job.loop, steps=6)
    job = replace(job, name="zyx_lora", data=data, loop=loop, memory=MemoryOptions(budget_gb=3.0), trigger_word="zyx")
    train_in_folder(tmp_path, job, "one", CPU)
    run = RunFolder(tmp_path / "runs" / "one")
    private = (
        f"my cat 0.png of zyx_lora ('a photo of zyx') can't be read from {tmp_path}/my cat 0.png; see C:\\Users\\Jo\\x"
    )
    with run.events_path.open("ab") as file:
        file.write(format_event({"event": "warning", "time": 1.0, "message": private}))
    return run


@pytest.fixture
def on_gpu(folder) -> RunFolder:
    """The same with a counter of memory in its steps, as a GPU has one."""
    events = list(EventReader(folder.events_path).stream())
    for event in events:
        if event["event"] == "step":
            event["allocated_gib"] = 1.5
    lines = [format_event({k: v for k, v in event.items() if k != "crc"}) for event in events]
    folder.events_path.write_bytes(b"".join(lines))
    return folder


def test_a_run_is_told_by_what_it_promised_and_took(folder):
    found = of_run(folder)
    assert found["plan"].startswith("0M fp32, 32x32x5: ")
    assert found["promised"]["gpu_gb"] > 0
    assert found["promised"]["seconds"] > 0
    assert found["promised"]["beside"]["checkpoints"]["count"] == 2
    assert len(found["measured"]["beside"]["checkpoint"]) == 3  # with that of the end
    assert found["measured"]["seconds"] > 0
    assert list(found["measured"]["first_seconds"]) == ["8"]
    assert found["steps"] == {"wanted": 6, "done": 6}
    assert (found["shortages"], found["memory"]["checkpointing"]) == ([], None)
    assert found["card"]["matmul"] > 0
    assert found["cell"] is None  # a CPU does not count what tensors take


def test_nothing_private_is_in_it(folder, tmp_path):
    text = json.dumps(of_run(folder))
    assert "can't be read from PATH" in text
    for word in ("zyx", "my cat", "Users", "Jo", str(tmp_path), tmp_path.name, "mini.safetensors", "pytest"):
        assert word not in text, word


def test_a_report_is_a_cell(tmp_path, on_gpu):
    report = {"run": of_run(on_gpu)}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    (cell,) = read_reports([path])
    (bucket,) = buckets_of(on_gpu.read_job())
    assert cell.bucket.shape == bucket.shape
    assert cell.gigabytes == pytest.approx(1.5 * 2**30 / 1e9, abs=1e-3)
    assert cell.seconds == report["run"]["cell"]["seconds"] > 0
    (plan,) = (event for event in EventReader(on_gpu.events_path).stream() if event["event"] == "plan")
    assert estimate(cell.task, cell.bucket, cell.plan, cell.card).vram == plan["vram"]


def test_a_run_whose_plan_changed_is_no_cell(on_gpu):
    (plan,) = (event for event in EventReader(on_gpu.events_path).stream() if event["event"] == "plan")
    changed = {k: v for k, v in plan.items() if k != "crc"} | {
        "step": 3,
        "message": "The GPU's memory ran out at step 4.",
    }
    with on_gpu.events_path.open("ab") as file:
        file.write(format_event(changed))
    found = of_run(on_gpu)
    assert found["cell"] is None
    assert found["shortages"] == ["The GPU's memory ran out at step 4."]


def test_the_command_prints_it_as_text_and_as_json(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # inductor takes a minute here
    assert main(["doctor", "--report", str(folder.path)]) == 0
    text = capsys.readouterr().out
    assert main(["doctor", "--report", str(folder.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["packages"]["torch"] in text
    assert report["works"]["compiler"] == "yes"
    assert "- compiler: yes" in text
    assert report["run"]["plan"] in text
    assert "### Run" in text
    assert str(Path.home()) not in text


def test_without_a_run_it_is_of_the_machine(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    report = make_report(None)
    assert report["machine"]["python"].startswith("3.")
    assert report["machine"]["pack"] == pack_version() != ""
    assert set(report) == {"machine", "works"}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is .* a run folder"):
        of_run(RunFolder(tmp_path))


def test_versions_are_read_from_the_files_that_say_them(tmp_path):
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    assert comfyui_version(pack) == ""
    (tmp_path / "ComfyUI" / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    assert comfyui_version(pack) == "0.33.0"


def test_sentences_without_persons(job: Job):
    clean = cleaner(replace(job, name="mine", trigger_word="qqq"))
    assert clean("mine is qqq in /home/x y/z.png") == "NAME is WORD in PATH PATH"
    assert clean("832x480x33: 7.1 of 8.0 GB, about 9 s a step, 38 of 40 blocks") == (
        "832x480x33: 7.1 of 8.0 GB, about 9 s a step, 38 of 40 blocks"
    )
    assert impersonal("No module named 'flash_attn' (C:\\Users\\a b\\c.py), holiday.mp4") == (
        "No module named 'flash_attn' (PATH PATH), FILE"
    )

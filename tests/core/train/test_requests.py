"""Asked of a run while it trains: a checkpoint now, a preview now. A checkpoint is a LoRA that says what it is."""

import json
import os
from dataclasses import replace

import torch
from wan_train.core.adapters.formats import read_lora
from wan_train.core.train.checkpoints import ADAPTER
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.requests import PREVIEW_FILE, REQUEST_FILES, SAVE_FILE, Requests, forget_requests, request
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.windows_disk import WindowsDisk


def train(path, job, asked):
    """`asked`: the step after which each request is made."""
    folder, waiting = RunFolder(path), dict(asked)
    path.mkdir()
    folder.write_job(job)

    def look():
        steps = [e["step"] for e in EventReader(folder.events_path).read() if e["event"] == "step"]
        for name in [name for name, step in waiting.items() if steps and steps[-1] >= step]:
            del waiting[name]
            request(path, name)
        return False

    run_job(folder, EventWriter(folder.events_path), torch.device("cpu"), look)
    return folder


def steps_of(folder, kind):
    return [e["step"] for e in EventReader(folder.events_path).read() if e["event"] == kind]


def test_what_is_asked_for_is_done_once_and_forgotten(tmp_path, job):
    folder = train(tmp_path / "run", job, {SAVE_FILE: 2, PREVIEW_FILE: 2})  # every 2 steps, and at the end, anyway
    saved = [step for step in steps_of(folder, "checkpoint") if step % 2]
    assert len(saved) == 1
    assert 3 <= saved[0] <= 5
    assert len(steps_of(folder, "preview")) == 1
    assert not any((folder.path / name).exists() for name in REQUEST_FILES)


def test_a_request_of_before_is_forgotten(tmp_path):
    request(tmp_path, SAVE_FILE)
    forget_requests(tmp_path)
    forget_requests(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_a_lora_with_its_story(tmp_path, job):
    folder = train(tmp_path / "run", job, {})
    step, path = folder.checkpoints()[0]
    file = read_lora(path / ADAPTER)
    assert file.expert == "low"
    assert file.metadata["ss_steps"] == str(step)
    assert file.metadata["modelspec.timestep_range"] == "0,875"
    assert json.loads(file.metadata["wantrain.job"])["name"] == job.name
    final = read_lora(next(folder.path.glob("*.safetensors")))
    assert file.metadata["modelspec.architecture"] == final.metadata["modelspec.architecture"]


def test_what_can_not_be_deleted_is_answered_once_and_deleted_later(tmp_path, job, monkeypatch):
    disk = WindowsDisk(monkeypatch)
    path = tmp_path / "run" / SAVE_FILE
    disk.open.add(path)
    job = replace(job, loop=replace(job.loop, checkpoint_every=100))
    folder = train(tmp_path / "run", job, {SAVE_FILE: 2})
    assert len(steps_of(folder, "checkpoint")) == 2  # the one asked for, and that at the end
    assert path.exists()
    assert disk.asked > 1  # tried after later steps, too
    requests = Requests(folder.path, SAVE_FILE)
    assert requests.is_there()
    requests.answer()
    assert not requests.is_there()
    os.utime(path, (1, 1))  # as `request` does with a file that is there
    assert requests.is_there()
    requests.answer()
    disk.open.clear()
    assert not requests.is_there()
    assert not path.exists()

"""All runs at a glance: states, the end of a diary alone, and nothing read twice."""

import json
import os
from dataclasses import replace

from wan_train.core.train import catalogue
from wan_train.core.train.catalogue import GONE, MOST_TAIL_BYTES, Catalogue, read_entry
from wan_train.core.train.events import EventWriter
from wan_train.core.train.find_run import claim_lock
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.train.test_find_run import make


def end(folder, kind, **fields):
    EventWriter(folder.events_path).write(kind, **fields)


def test_pipes_and_folders_in_the_place_of_files_hold_nobody_up(tmp_path, job):
    folder = make(tmp_path, job, steps=(1,), checkpoints=(2,))
    for path in (folder.events_path, folder.result_path, folder.workflow_path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if hasattr(os, "mkfifo") else path.mkdir()
    entry = only(tmp_path)
    assert (entry.step, entry.began, entry.steps) == (0, None, 6)
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / "job.json") if hasattr(os, "mkfifo") else (tmp_path / "other" / "job.json").mkdir()
    assert only(tmp_path).folder == folder.path


def only(runs):
    (entry,) = Catalogue(runs).entries()
    return entry


def test_a_finished_run_says_what_it_has_done(tmp_path, job):
    folder = make(tmp_path, job, steps=range(1, 7), checkpoints=(4, 6), result=6)
    end(folder, "validation", step=6, loss=0.25)
    end(folder, "finished", lora="test.safetensors")
    (folder.path / "previews").mkdir()
    (folder.path / "previews" / "step-00000006.webp").write_bytes(b"x" * 100)
    entry = only(tmp_path)
    assert (entry.name, entry.stage, entry.state, entry.step, entry.steps) == ("test", "low", "finished", 6, 6)
    assert (entry.loss, entry.held_out, entry.seconds_per_step) == (6.0, 0.25, 0.1)
    assert entry.preview is not None
    assert entry.preview[0] == 6
    assert entry.size == sum(path.lstat().st_size for path in folder.path.rglob("*") if path.is_file())
    assert entry.latents == job.data.samples[0].latents_path
    assert entry.began is not None
    assert not entry.has_workflow


def test_a_run_whose_process_is_gone_is_stopped_and_one_that_is_held_goes_on(tmp_path, job):
    folder = make(tmp_path, job, steps=(1, 2))
    os.utime(folder.job_path, (1e9, 1e9))  # many a disk's clock would not have moved on when it is written again
    listed, lock = Catalogue(tmp_path), claim_lock(folder)
    assert lock.acquire()
    try:
        assert [entry.state for entry in listed.entries()] == ["training"]
    finally:
        lock.release()
    (entry,) = listed.entries()  # no file has changed; the lock has
    assert (entry.state, entry.why, entry.step) == ("stopped", GONE, 2)
    assert lock.acquire()
    try:
        folder.write_job(job)  # as who takes it up does
        assert [entry.state for entry in listed.entries()] == ["training"]
    finally:
        lock.release()


def test_a_failed_run_says_why_in_one_sentence_without_its_place(tmp_path, job):
    folder = make(tmp_path, job, steps=(1,))
    end(folder, "error", message=f"{folder.path}/a.bin is gone: put it back. It was there before.\nMore of it.")
    assert only(tmp_path).why == f"{folder.path.name}/a.bin is gone: put it back."
    end(folder, "error", message="x" * 1000)
    assert len(only(tmp_path).why) == 300


def test_a_run_that_was_made_longer_is_not_finished(tmp_path, job):
    folder = make(tmp_path, job, steps=range(1, 7), result=6)
    end(folder, "finished", lora="test.safetensors")
    folder.write_job(replace(job, loop=replace(job.loop, steps=60)))
    entry = only(tmp_path)
    assert (entry.state, entry.step, entry.steps) == ("stopped", 6, 60)


def test_of_a_long_diary_the_end_is_read(tmp_path, job, monkeypatch):
    folder = make(tmp_path, job)
    with folder.events_path.open("a") as file:
        for step in range(1, 30_001):
            file.write(json.dumps({"event": "step", "time": 1.0, "step": step, "loss": 0.5, "seconds": 2.0}) + "\n")
            if step == 29_000:  # further back than the first look
                file.write(json.dumps({"event": "validation", "time": 1.0, "step": step, "loss": 0.125}) + "\n")
    assert folder.events_path.stat().st_size > 2 * MOST_TAIL_BYTES
    parsed = []
    parse = catalogue.parse_event
    monkeypatch.setattr(catalogue, "parse_event", lambda line: parsed.append(1) or parse(line))
    entry = read_entry(folder)
    assert (entry.step, entry.held_out, entry.seconds_per_step) == (30_000, 0.125, 2.0)
    assert len(parsed) < 1500


def test_hundreds_of_runs_are_read_once_and_only_what_changed_again(tmp_path, job, monkeypatch):
    for number in range(200):
        path = tmp_path / f"r{number}_low_{job.key}"
        path.mkdir()
        RunFolder(path).write_job(replace(job, name=f"r{number}"))
        EventWriter(path / "events.jsonl").write("stopped", message="stopped")
    reads = []
    read = catalogue.read_entry
    monkeypatch.setattr(catalogue, "read_entry", lambda folder: reads.append(folder) or read(folder))
    listed = Catalogue(tmp_path)
    assert len(listed.entries()) == len(reads) == 200
    reads.clear()
    changed = RunFolder(tmp_path / f"r7_low_{job.key}")
    end(changed, "step", step=1, loss=1.0)
    end(changed, "finished", lora="x")
    os.utime(changed.events_path, (2e9, 2e9))
    entries = listed.entries()
    assert [folder.path for folder in reads] == [changed.path]
    assert entries[0].folder == changed.path  # the newest first
    assert len(entries) == 200


def test_what_is_damaged_is_listed_and_what_is_no_run_is_not(tmp_path, job):
    folder = make(tmp_path, job, steps=(1,))
    folder.job_path.write_text('{"name": 3, "loop": [], "data": {"samples": [5]}, "model": 1}')
    folder.events_path.write_bytes(b"\xff\xfe" * 3000)
    (tmp_path / ".deleted-1").mkdir()
    (tmp_path / ".deleted-1" / "job.json").write_text("{}")
    (tmp_path / "else").mkdir()
    entry = only(tmp_path)
    assert (entry.name, entry.steps, entry.state) == (folder.path.name, 0, "new")
    folder.job_path.write_text("{")
    entry = only(tmp_path)
    assert (entry.state, entry.why) == ("error", "its job.json is damaged or was changed")
    assert Catalogue(tmp_path / "absent").entries() == []

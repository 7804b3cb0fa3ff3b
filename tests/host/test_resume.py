"""Killed, stopped, changed, queued again: on the real host."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.train.events import EventReader, read_history
from wan_train.tests.host.graphs import changed, one_stage

STEPS = 150


def run_folders(host) -> set[Path]:
    return set((host.base / "output" / "wan_train" / "runs").glob("*"))


def succeeded(entry) -> bool:
    ok = entry["status"]["status_str"] == "success"
    if not ok:
        sys.stderr.write(f"{entry['status']['messages'][-1]}\n")  # pytest shows it where success was expected
    return ok


def worker_pids(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(int(path.parent.name))
    return found


def await_step(folder: Path, step: int, timeout: float = 90.0) -> int:
    """Wait until the run has made a step above `step`; the newest step."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        newest = max(read_history(folder / "events.jsonl").losses, default=0)
        if newest > step:
            return newest
        time.sleep(0.02)
    raise AssertionError(f"no step above {step} in {folder}")


def starts_of(folder: Path) -> list[int]:
    """The steps that each attempt began with."""
    return [e["step"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "start"]


def await_start(folder: Path, attempt: int, timeout: float = 90.0) -> int:
    """Wait for the attempt's start; the step that it begins with."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        starts = starts_of(folder)
        if len(starts) >= attempt:
            return starts[attempt - 1]
        time.sleep(0.02)
    raise AssertionError(f"attempt {attempt} did not start in {folder}")


def new_folder(host, before: set[Path], timeout: float = 60.0) -> Path:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        new = [p for p in run_folders(host) - before if (p / "job.json").exists()]
        if new:
            return new[0]
        time.sleep(0.05)
    raise AssertionError("no run folder appeared")


def same_weights(a: Path, b: Path) -> bool:
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def train_anew(host, prompt) -> Path:
    """Train a copy of the same job in a folder of its own, never stopped; its LoRA."""
    import shutil

    before = run_folders(host)
    assert succeeded(host.run(prompt))
    (folder,) = run_folders(host) - before
    aside = host.base / "aside" / folder.name
    shutil.move(folder, aside)
    return next(aside.glob("*.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
def test_killed_ten_times_the_lora_is_bit_identical(host):
    prompt = one_stage("low", lora_name="killed", steps=STEPS, checkpoint_every=3, dropout=0.1, caption_dropout=0.2)
    whole = train_anew(host, prompt)
    before = run_folders(host)
    rng = random.Random(0)
    folder, last = None, 0
    for attempt in range(1, 11):
        prompt_id = host.queue(prompt)
        folder = folder or new_folder(host, before)
        last = await_step(folder, await_start(folder, attempt) + rng.randint(0, 5))
        (pid,) = worker_pids(folder)
        os.kill(pid, signal.SIGKILL)
        entry = host.wait(prompt_id)
        assert not succeeded(entry)
        message = entry["status"]["messages"][-1][1]["exception_message"]
        assert "ended unexpectedly (code -9); queue again" in message
        assert not worker_pids(folder)
    assert 0 < last < STEPS
    assert succeeded(host.run(prompt))
    assert len(starts_of(folder)) == 11
    assert starts_of(folder) == sorted(starts_of(folder))
    assert 0 < starts_of(folder)[-1] < STEPS
    assert same_weights(whole, next(folder.glob("*.safetensors")))


def test_stop_in_the_page_keeps_a_checkpoint_and_run_goes_on(host):
    prompt = one_stage("low", lora_name="stopped", steps=STEPS, seed=5, checkpoint_every=1000)
    before = run_folders(host)
    prompt_id = host.queue(prompt)
    folder = new_folder(host, before)
    step = await_step(folder, 2)
    host.interrupt(prompt_id)
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    history = read_history(folder / "events.jsonl")
    assert history.state == "stopped"
    stopped_at = max(history.losses)
    assert stopped_at <= step + 3  # the request reaches the worker within a poll of the node and one step
    assert (folder / "checkpoints" / f"step-{stopped_at:08d}" / "state.pt").is_file()
    assert not worker_pids(folder)
    assert succeeded(host.run(prompt))
    assert starts_of(folder) == [0, stopped_at]
    lora = next(folder.glob("*.safetensors"))
    kept = host.base / "stopped.safetensors"
    lora.rename(kept)
    (folder / "job.json").unlink()  # the same job once more, from the start
    folder.rename(host.base / "stopped_run")
    assert same_weights(kept, train_anew(host, changed(prompt, "low_train", keep_last=2)))


def test_a_finished_run_returns_at_once_whatever_ran_in_between(host):
    prompt = one_stage("high", lora_name="once", seed=6)
    assert succeeded(host.run(prompt))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("once")]
    size = (folder / "events.jsonl").stat().st_size
    other = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}}
    other["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    assert succeeded(host.run(other))
    renamed = changed(prompt, "high_train", lora_name="twice", device="cpu", keep_last=1)
    start = time.monotonic()
    assert succeeded(host.run(renamed))
    assert time.monotonic() - start < 5
    assert (folder / "events.jsonl").stat().st_size == size  # no step was made
    assert not [p for p in run_folders(host) if p.name.startswith("twice")]


def test_a_deleted_run_is_trained_again(host):
    import shutil

    prompt = one_stage("high", lora_name="gone", seed=7, steps=2)
    assert succeeded(host.run(prompt))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("gone")]
    shutil.rmtree(folder)
    assert succeeded(host.run(prompt))
    assert next(folder.glob("*.safetensors")).is_file()


def test_an_edited_caption_encodes_one_caption_and_makes_another_run(host):
    prompt = one_stage("high", lora_name="edited", seed=8, steps=2)
    assert succeeded(host.run(prompt))
    cache = host.base / "output" / "wan_train" / "cache"

    def count(kind):
        return len(list((cache / kind).rglob("*.safetensors")))

    latents, texts, runs = count("latents"), count("text"), len(run_folders(host))
    caption = sorted((host.base / "input" / "shapes").glob("*.txt"))[0]
    old = caption.read_text()
    try:
        caption.write_text(old + " at night")
        assert succeeded(host.run(prompt))
    finally:
        caption.write_text(old)
    assert (count("latents"), count("text"), len(run_folders(host))) == (latents, texts + 1, runs + 1)


def test_a_longer_run_goes_on_from_a_shorter_one(host):
    prompt = one_stage("high", lora_name="longer", seed=9, steps=3)
    assert succeeded(host.run(prompt))
    assert succeeded(host.run(changed(prompt, "high_train", steps=5)))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("longer")]
    assert starts_of(folder) == [0, 3]
    assert json.loads((folder / "result.json").read_text())["step"] == 5

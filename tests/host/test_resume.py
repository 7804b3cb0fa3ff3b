"""Stopped, changed, deleted, queued again: on the real host."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from wan_train.core.data.store import read_entry
from wan_train.core.train.events import read_history
from wan_train.tests.host.graphs import changed, one_stage
from wan_train.tests.host.runs import (
    await_step,
    new_folder,
    run_folders,
    same_weights,
    starts_of,
    succeeded,
    train_anew,
    worker_pids,
)

LONG = 100_000  # steps of a run that is stopped, or deleted, before it is over


def test_stop_in_the_page_keeps_a_checkpoint_and_run_goes_on(host):
    prompt = one_stage("low", lora_name="stopped", steps=LONG, seed=5, checkpoint_every=1000)
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
    assert stopped_at >= step
    assert (folder / "checkpoints" / f"step-{stopped_at:08d}" / "state.pt").is_file()
    assert not worker_pids(folder)
    prompt = changed(prompt, "low_train", steps=stopped_at + 10)
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
    entry = host.run(changed(prompt, "high_train", device="cpu", keep_last=1))
    assert succeeded(entry)
    assert (folder / "events.jsonl").stat().st_size == size  # no step was made
    (text,) = entry["outputs"]["high_train"]["text"]
    assert f", in {folder.name}" in text
    assert "run once, begun 20" in text


@pytest.mark.grid(3, "resumed on the host")
def test_a_renamed_run_has_a_folder_of_its_own_and_is_not_trained_again(host):
    prompt = one_stage("high", lora_name="named", seed=16, steps=4)
    assert succeeded(host.run(prompt))
    (first,) = [p for p in run_folders(host) if p.name.startswith("named")]
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert succeeded(host.run(changed(prompt, "high_train", lora_name="renamed")))
    (second,) = [p for p in run_folders(host) if p.name.startswith("renamed")]
    assert starts_of(second) == [4]
    assert same_weights(next(first.glob("*.safetensors")), next(second.glob("*.safetensors")))
    assert succeeded(host.run(changed(prompt, "high_train", steps=2)))  # shorter: what is kept is beyond, so from 0
    (third,) = [p for p in run_folders(host) if p.name.startswith("named_high_2steps")]
    assert starts_of(third) == [0]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_a_run_folder_deleted_while_it_trains_is_one_sentence(host):
    prompt = one_stage("high", lora_name="vanishing", steps=LONG, seed=17)
    before = run_folders(host)
    prompt_id = host.queue(prompt)
    folder = new_folder(host, before)
    await_step(folder, 2)
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    entry = host.wait(prompt_id)
    message = entry["status"]["messages"][-1][1]["exception_message"]
    assert f"the run folder {folder} was deleted while it was trained in: start again to begin anew." in message


@pytest.mark.grid(3, "resumed on the host")
def test_a_deleted_run_is_trained_again(host):
    prompt = one_stage("high", lora_name="gone", seed=7, steps=2)
    assert succeeded(host.run(prompt))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("gone")]
    shutil.rmtree(folder)
    assert succeeded(host.run(prompt))
    assert next(folder.glob("*.safetensors")).is_file()


@pytest.mark.grid(3, "resumed on the host")
def test_an_edited_caption_encodes_one_caption_and_makes_another_run(host):
    prompt = one_stage("high", lora_name="edited", seed=8, steps=2)
    assert succeeded(host.run(prompt))
    cache = host.base / "output" / "wan_train" / "cache"

    def count(kind):
        return len(list((cache / kind).rglob("*.safetensors")))

    left = cache / "text" / "ab" / f".half.safetensors.1.{'0' * 6}0123abcd.tmp"  # of another machine, two days ago
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * 24 * 3600,) * 2)
    latents, texts, runs = count("latents"), count("text"), len(run_folders(host))
    caption = sorted((host.base / "input" / "shapes").glob("*.txt"))[0]
    old = caption.read_text()
    try:
        caption.write_text(old + " at night")
        assert succeeded(host.run(prompt))
    finally:
        caption.write_text(old)
    assert (count("latents"), count("text"), len(run_folders(host))) == (latents, texts + 1, runs + 1)
    assert not left.exists()


@pytest.mark.grid(3, "resumed on the host")
def test_a_longer_run_goes_on_from_a_shorter_one(host):
    prompt = one_stage("high", lora_name="longer", seed=9, steps=3)
    assert succeeded(host.run(prompt))
    assert succeeded(host.run(changed(prompt, "high_train", steps=5)))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("longer")]
    assert starts_of(folder) == [0, 3]
    assert json.loads((folder / "result.json").read_text())["step"] == 5


@pytest.mark.grid(3, "resumed on the host")
def test_a_damaged_cache_entry_is_named_and_encoded_again_in_the_same_session(host):
    prompt = one_stage("high", lora_name="spoilt", seed=10, steps=2)
    assert succeeded(host.run(prompt))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("spoilt")]
    path = Path(json.loads((folder / "job.json").read_text())["data"]["samples"][0]["latents_path"])
    whole, latents = path.read_bytes(), read_entry(path)["latents"]
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    other = changed(prompt, "high_train", seed=11)
    entry = host.run(other)
    assert entry["status"]["status_str"] == "error"
    assert f"are damaged in {path}" in json.dumps(entry["status"]["messages"])
    assert succeeded(host.run(other))
    assert torch.equal(read_entry(path)["latents"], latents)


@pytest.mark.grid(3, "resumed on the host")
def test_a_damaged_lora_is_written_again(host):
    prompt = one_stage("high", lora_name="bitten", seed=12, steps=2)
    assert succeeded(host.run(prompt))
    (folder,) = [p for p in run_folders(host) if p.name.startswith("bitten")]
    lora = next(folder.glob("*.safetensors"))
    whole = host.base / "bitten.safetensors"
    shutil.copy(lora, whole)
    data = lora.read_bytes()
    lora.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert succeeded(host.run(changed(prompt, "high_train", keep_last=2)))  # which makes the node run
    assert same_weights(lora, whole)
    assert starts_of(folder) == [0, 2]

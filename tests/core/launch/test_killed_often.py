"""Killed at random steps and started again, ten times: the LoRA is that of a run that was never stopped."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.launch.process import Worker
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder

STEPS, KILLS = 200, 10


def make_folder(path, job):
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_job(job)
    return folder


def starts_of(folder):
    return [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == "start"]


def await_step(folder, attempt, steps, timeout=60.0):
    """Wait until the attempt has made more than `steps` steps; the newest step."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        starts, newest = starts_of(folder), max(read_history(folder.events_path).losses, default=0)
        if len(starts) == attempt and newest > starts[-1] + steps:
            return newest
        time.sleep(0.02)
    raise AssertionError(f"attempt {attempt} made no {steps} steps in {folder.path}")


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_killed_ten_times_the_lora_is_bit_identical(tmp_path, job):
    loop = replace(job.loop, steps=STEPS, checkpoint_every=3, caption_dropout=0.2)
    job = replace(job, loop=loop, adapter=replace(job.adapter, dropout=0.1))
    whole, killed = (make_folder(tmp_path / name / "runs" / "run", job) for name in ("whole", "killed"))
    rng = random.Random(0)
    assert Worker(whole).process.wait() == 0
    for attempt in range(1, KILLS + 1):
        process = Worker(killed).process
        last = await_step(killed, attempt, rng.randint(0, 5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < last < STEPS
    assert Worker(killed).process.wait() == 0
    starts = starts_of(killed)
    assert len(starts) == KILLS + 1
    assert starts == sorted(starts)
    assert 0 < starts[-1] < STEPS
    ours, theirs = load_file(killed.finished_lora(STEPS)), load_file(whole.finished_lora(STEPS))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

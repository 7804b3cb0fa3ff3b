"""Killed and queued again, on the real host; ten times in a row: tests/core/launch/test_killed_often.py."""

import os
import random
import signal

import pytest
from wan_train.tests.host.graphs import one_stage
from wan_train.tests.host.runs import (
    await_start,
    await_step,
    new_folder,
    run_folders,
    same_weights,
    starts_of,
    succeeded,
    train_anew,
    worker_pids,
)

STEPS, KILLS = 45, 2  # the second in an attempt that went on


@pytest.mark.grid(2, "killed")
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
def test_killed_and_queued_again_the_lora_is_bit_identical(host):
    prompt = one_stage("low", lora_name="killed", steps=STEPS, checkpoint_every=3, dropout=0.1, caption_dropout=0.2)
    whole = train_anew(host, prompt)
    before = run_folders(host)
    rng = random.Random(0)
    folder, last = None, 0
    for attempt in range(1, KILLS + 1):
        prompt_id = host.queue(prompt)
        folder = folder or new_folder(host, before)
        last = await_step(folder, await_start(folder, attempt) + rng.randint(0, 5))
        (pid,) = worker_pids(folder)
        os.kill(pid, signal.SIGKILL)
        entry = host.wait(prompt_id)
        assert not succeeded(entry)
        message = entry["status"]["messages"][-1][1]["exception_message"]
        assert "ended unexpectedly (code -9): start it again" in message
        assert not worker_pids(folder)
    assert 0 < last < STEPS
    assert succeeded(host.run(prompt))
    assert len(starts_of(folder)) == KILLS + 1
    assert starts_of(folder) == sorted(starts_of(folder))
    assert 0 < starts_of(folder)[-1] < STEPS
    assert same_weights(whole, next(folder.glob("*.safetensors")))

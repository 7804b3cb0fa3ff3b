"""Killed and queued again, on the real host; ten times in a row: tests/core/launch/test_killed_often.py."""

import os
import random
import signal
from functools import partial

import pytest
from wan_train.core.train.events import read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.host.graphs import changed, one_stage
from wan_train.tests.host.runs import (
    await_start,
    await_step,
    new_folder,
    run_folders,
    same_weights,
    starts_of,
    succeeded,
    train_anew,
    until,
    worker_pids,
)

KILLS = 2  # the second in an attempt that went on
LONG = 100_000  # steps of the attempts: none is over before it is killed


def newest_checkpoint(folder, after):
    """The newest step that has one; 0 where that is not after the given one."""
    newest = max((step for step, _ in RunFolder(folder).checkpoints()), default=0)
    return newest if newest > after else 0


@pytest.mark.grid(2, "killed")
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
def test_killed_and_queued_again_the_lora_is_bit_identical(host):
    prompt = one_stage("low", lora_name="killed", steps=LONG, checkpoint_every=3, dropout=0.1, caption_dropout=0.2)
    before = run_folders(host)
    rng = random.Random(0)
    folder, last = None, 0
    for attempt in range(1, KILLS + 1):
        prompt_id = host.queue(prompt)
        folder = folder or new_folder(host, before)
        begun = await_start(folder, attempt)
        kept = until(partial(newest_checkpoint, folder, begun), "a checkpoint of this attempt")
        last = await_step(folder, kept + rng.randint(0, 5))
        (pid,) = worker_pids(folder)
        os.kill(pid, signal.SIGKILL)
        entry = host.wait(prompt_id)
        assert not succeeded(entry)
        message = entry["status"]["messages"][-1][1]["exception_message"]
        assert "ended unexpectedly (code -9): start it again" in message
        assert not worker_pids(folder)
    done = max(read_history(folder / "events.jsonl").losses)
    assert 0 < last <= done
    short = changed(prompt, "low_train", steps=done + 10)
    assert succeeded(host.run(short))
    assert len(starts_of(folder)) == KILLS + 1
    assert starts_of(folder) == sorted(starts_of(folder))
    assert len(set(starts_of(folder))) == KILLS + 1
    assert starts_of(folder)[-1] <= done
    resumed = folder.rename(host.base / "killed_run")  # the same job once more, from the start
    whole = train_anew(host, changed(short, "low_train", keep_last=2))
    assert same_weights(whole, next(resumed.glob("*.safetensors")))

"""Two GPUs train one run through NCCL: the run of one GPU, and the same bits on both."""

import os
from dataclasses import replace

import pytest
import torch
from wan_train.core.launch.exits import EXIT_FINISHED
from wan_train.core.train.events import EventReader
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.launch.test_rank import Started
from wan_train.tests.core.train.helpers import train_in_folder

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2 or os.name == "nt", reason="two GPUs on Linux")


@pytest.mark.parametrize("graphs", ["off", "auto"])
def test_two_gpus_train_the_run_of_one(tmp_path, job, graphs):
    """With CUDA graphs, too, whose backwards are summed when they are over."""
    job = replace(
        job,
        device="cuda:0",
        model=replace(job.model, precision="fp32"),
        loop=replace(job.loop, steps=12, gradient_accumulation=2, caption_dropout=0.0),
        memory=replace(job.memory, cuda_graphs=graphs),
    )
    alone, _, _ = train_in_folder(tmp_path, job, "alone", torch.device("cuda:0"))
    folder = RunFolder(tmp_path / "two")
    folder.path.mkdir()
    folder.write_job(job)
    started = Started(folder, tmp_path / "logs", WANTRAIN_DEVICES="cuda:0,cuda:1")
    started.wait(300)
    assert started.process.returncode == EXIT_FINISHED, started.said(0) + started.said(1)
    steps = [event for event in EventReader(folder.events_path).read() if event["event"] == "step"]
    assert [event["loss"] for event in steps] == pytest.approx(alone, rel=2e-3)
    assert all(len(event["gpus"]) == 2 for event in steps)
    assert all(gpu["reserved_gib"] > 0 and gpu["name"] for event in steps for gpu in event["gpus"])

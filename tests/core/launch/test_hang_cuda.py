"""Two GPUs train one run through NCCL, and a kernel of one never ends: the run ends with that rank's name, and goes on."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from wan_train.core.launch.exits import EXIT_ERROR, EXIT_FINISHED
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.launch.faulty import write_faulty

PACK = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2 or os.name == "nt", reason="two GPUs on Linux")


def test_a_gpu_that_spins_ends_the_run_which_goes_on_with_the_same_loss(tmp_path, job):
    fault = write_faulty(tmp_path, "spinning", update=4, act="torch.cuda._sleep(2 * 10**9 * 3600)")  # an hour
    optimizer = replace(job.optimizer, name="custom", path="spinning.AdamW")
    loop = replace(job.loop, steps=6, gradient_accumulation=2, checkpoint_every=2)
    folder = RunFolder(tmp_path / "two")
    folder.path.mkdir()
    data = replace(job.data, samples=tuple(s for s in job.data.samples if s.shape == job.data.samples[0].shape))
    folder.write_job(replace(job, device="cuda:0,cuda:1", data=data, optimizer=optimizer, loop=loop))

    def train() -> int:
        paths = os.pathsep.join(filter(None, [fault["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
        environment = {**fault, "PYTHONPATH": paths, "WANTRAIN_STANDSTILL": "5"}
        command = [sys.executable, str(PACK / "wantrain.py"), "train", str(folder.path), "--follow-stdin"]
        with (
            folder.log_path.open("ab") as log,
            subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=tmp_path,
            ) as process,
        ):
            return process.wait()

    assert train() == EXIT_ERROR, folder.log_path.read_text()
    message = read_history(folder.events_path).message
    assert message.startswith("rank 1 (cuda:1 of "), message
    assert " hangs: its GPU has not got on for " in message
    left = [process.pid for process in psutil.process_iter() if str(folder.path) in " ".join(_command(process))]
    assert left == []
    checkpoint = folder.checkpoints()[-1][0]
    assert checkpoint in (2, 4)

    assert train() == EXIT_FINISHED, folder.log_path.read_text()
    losses: dict[int, set[float]] = {}
    for event in EventReader(folder.events_path).read():
        if event["event"] == "step":
            losses.setdefault(event["step"], set()).add(event["loss"])
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert all(max(found) == pytest.approx(min(found), rel=1e-3) for found in losses.values())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

"""One job trained twice, each part by a process of its own: never stopped, and in two parts."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from wan_train.core.launch.ahead import worker_environment
from wan_train.core.launch.exits import EXIT_FINISHED
from wan_train.core.settings.job import Job
from wan_train.core.train.events import EventReader
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests import warm

STEPS = 6
Bits = dict[str, torch.Tensor]


def whole(tmp_path: Path, job: Job) -> RunFolder:
    """Trained for all its steps by one process."""
    folder = _folder(tmp_path, "whole")
    _train(folder, job, STEPS)
    return folder


def in_parts(tmp_path: Path, job: Job) -> RunFolder:
    """Trained for half of its steps, and gone on with by another process."""
    folder = _folder(tmp_path, "parts")
    _train(folder, job, STEPS // 2)
    _train(folder, job, STEPS)
    return folder


def bits(folder: RunFolder) -> Bits:
    """Every tensor that the run ended with: the LoRA's, and the optimizer's."""
    lora = folder.finished_lora(STEPS)
    assert lora is not None
    step, newest = folder.checkpoints()[-1]
    assert step == STEPS
    state = torch.load(newest / "state.pt", weights_only=True)
    return {**load_file(lora), **_tensors(state, "state")}


def losses(folder: RunFolder) -> list[float]:
    """Of each step."""
    return [event["loss"] for event in EventReader(folder.events_path).read() if event["event"] == "step"]


def warnings(folder: RunFolder) -> list[str]:
    """What was told."""
    return [event["message"] for event in EventReader(folder.events_path).read() if event["event"] == "warning"]


def assert_same(one: Bits, other: Bits) -> None:
    """To the bit."""
    assert one.keys() == other.keys()
    assert len(one) > 0
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert different == []


def _folder(tmp_path: Path, name: str) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True)
    return folder


def _train(folder: RunFolder, job: Job, steps: int) -> None:
    folder.write_job(replace(job, loop=replace(job.loop, steps=steps)))
    done = warm.run("train", folder.path, env=worker_environment(os.environ))
    assert done.returncode == EXIT_FINISHED, done.stderr


def _tensors(value: object, name: str) -> Bits:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    found: Bits = {}
    for key, item in items:
        found |= _tensors(item, f"{name}/{key}")
    return found

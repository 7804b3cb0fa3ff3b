"""A training waits for a GPU that other programs have filled, says for whom, and never for what can't come."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.launch.free_gpu import LOOK_SECONDS, FreeGpus, least_memory
from wan_train.core.launch.gpu_programs import GpuMemory, Program
from wan_train.core.plan.constants import constants
from wan_train.core.plan.decision import Decision
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.plan.test_estimate import CARD

GIB = 2**30
CUDA = torch.device("cuda:0")
OTHER = Program(2**22 + 1, "/usr/bin/python3.11", 20 * GIB)


@pytest.fixture
def job(job: Job) -> Job:
    return replace(job, model=replace(job.model, precision="bf16"))


class Server:
    """One GPU whose memory changes, and a clock that is set."""

    def __init__(self, *programs: Program, free: int, total: int = 24 * GIB):
        self.gpu, self.now, self.asked = GpuMemory(free, total, programs), 0.0, 0
        self.gpus = FreeGpus(self._read, uuid_of=lambda device: f"id-{device.index}", clock=lambda: self.now)

    def _read(self) -> dict[str, GpuMemory]:
        self.asked += 1
        return {"id-0": self.gpu}

    def shortage(self, job: Job, device: torch.device = CUDA) -> str:
        return self.gpus.shortage(job, device)

    def later(self, **changes: object) -> None:
        self.gpu, self.now = replace(self.gpu, **changes), self.now + LOOK_SECONDS


def planner_with(job: Job, free: int) -> Planner:
    decision = Decision(info=inspect(job.model.path), device=CUDA, dtype=torch.bfloat16, modes=("kernels", "off"))
    return make_planner(job, decision, replace(CARD, free=free - constants().overhead_vram, total=free))


def test_the_need_is_the_least_with_which_the_planner_finds_a_plan(job: Job):
    need = least_memory(job, CUDA, 24 * GIB)
    assert planner_with(job, need + 2**20).fits()
    assert not planner_with(job, need - 2**20).fits()


def test_a_plan_by_hand_needs_what_it_says(job: Job):
    free = least_memory(job, CUDA, 24 * GIB)
    by_hand = replace(job, memory=MemoryOptions(plan="manual", checkpointing=False))
    assert least_memory(by_hand, CUDA, 24 * GIB) > free


def test_a_full_gpu_is_waited_for_until_there_is_room(job: Job):
    need = least_memory(job, CUDA, 24 * GIB)
    server = Server(OTHER, free=need - 1)
    sentence = server.shortage(job)
    assert "cuda:0 has" in sentence
    assert f"of 24.0 GiB free, and this training takes {need / GIB:.1f} at least" in sentence
    assert f"python3.11, PID {OTHER.pid}, 20.0 GiB" in sentence
    assert "--no-wait" in sentence
    server.later(free=need)
    assert server.shortage(job) == ""


def test_the_sentence_changes_with_the_programs_alone(job: Job):
    server = Server(OTHER, free=100)
    first = server.shortage(job)
    server.later(free=5)
    assert server.shortage(job) == first
    server.later(programs=(replace(OTHER, pid=OTHER.pid + 1, num_bytes=None),))
    assert f"python3.11, PID {OTHER.pid + 1}. It starts" in server.shortage(job)


def test_many_programs_are_counted_and_unknown_ones_told(job: Job):
    server = Server(*(replace(OTHER, pid=OTHER.pid + i) for i in range(5)), free=0)
    assert "; 2 more. It starts" in server.shortage(job)
    assert "does not say by which programs" in Server(free=0).shortage(job)


def test_nvidia_smi_is_asked_once_in_a_while(job: Job):
    server = Server(OTHER, free=0)
    for _ in range(3):
        server.shortage(job)
    assert server.asked == 1
    server.later()
    server.shortage(job)
    assert server.asked == 2


def test_of_several_devices_the_one_that_is_full_is_named(job: Job, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    server = Server(OTHER, free=0)
    assert server.gpus.first_shortage(job, ["cpu", "cuda:1", "cuda:0"]).startswith("cuda:0 has 0.0 of")
    assert server.gpus.first_shortage(job, ["cpu", "cuda:1"]) == ""


def test_gpus_that_share_the_base_or_a_clip_need_less_each(job: Job, deep_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    by_hand = replace(job, model=replace(deep_model, precision="bf16"), memory=MemoryOptions(plan="manual"))
    whole = least_memory(by_hand, CUDA, 24 * GIB, 2)
    assert whole >= least_memory(by_hand, CUDA, 24 * GIB)  # gradients are gathered in buffers
    sharded = replace(by_hand, parallel=ParallelOptions(context=1, base="sharded"))
    assert least_memory(sharded, CUDA, 24 * GIB, 2) < whole
    shared = replace(by_hand, parallel=ParallelOptions(context=2, base="whole"))
    assert least_memory(shared, CUDA, 24 * GIB, 2) < whole
    server = Server(OTHER, free=whole - 1)
    assert server.gpus.first_shortage(by_hand, ["cuda:0", "cpu"]).startswith("cuda:0 has ")
    assert server.gpus.first_shortage(sharded, ["cuda:0", "cpu"]) == ""


def test_nobody_waits_for_a_card_that_is_too_small(job: Job):
    assert Server(OTHER, free=0, total=2**20).shortage(job) == ""


def test_nobody_waits_where_nothing_is_known(job: Job, tmp_path):
    server = Server(OTHER, free=0)
    assert server.shortage(job, torch.device("cuda:1")) == ""  # a part of a GPU (MIG), which nvidia-smi does not list
    assert server.shortage(job, torch.device("cpu")) == ""
    assert server.shortage(replace(job, model=replace(job.model, path=str(tmp_path / "gone.safetensors")))) == ""

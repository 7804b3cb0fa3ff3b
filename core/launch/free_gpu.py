"""Whether a GPU has the memory that a training needs at least, and if not, whom it waits for.

Our own runs take turns by a lock (`device_lock`). Other programs know nothing of it: on a shared server, or beside an open
ComfyUI, their memory has to be looked at before a training starts, or it would be refused, or run slowly from main memory.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..devices import gpu_uuid, resolve_device
from ..errors import WanTrainError
from ..plan.card import Card
from ..plan.constants import constants
from ..plan.decision import Decision, arithmetic, for_context, wanted_modes
from ..plan.host import available_ram, pinnable_ram
from ..plan.plan import Gpus
from ..plan.planner import MARGIN, MARGIN_BYTES
from ..plan.planning import make_planner, plan_of
from ..settings.job import Job
from ..wan.checkpoint import inspect
from .gpu_programs import GpuMemory, command_of, read_gpus

GIB = 2**30
LOOK_SECONDS = 5.0  # between two questions to nvidia-smi, which takes a second on a server with many GPUs
_EMPTY = 0.95  # of the memory of a GPU, with which nobody else is there: what does not fit then is told when it starts
MOST_NAMED = 3  # programs in a sentence
_RATES = ("matmul", "matmul_fp32", "attention", "bandwidth", "to_device", "staged")


class FreeGpus:
    """Answers for several trainings that wait. `read` and `clock` are nvidia-smi and the time but in tests."""

    def __init__(
        self,
        read: Callable[[], Mapping[str, GpuMemory]] = read_gpus,
        *,
        uuid_of: Callable[[torch.device], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._read, self._uuid_of, self._clock = read, uuid_of or gpu_uuid, clock
        self._gpus: Mapping[str, GpuMemory] = {}
        self._read_at = float("-inf")
        self._needs: dict[tuple[str, str, int, int], int | None] = {}
        self._said: dict[tuple[torch.device, int, frozenset[int]], str] = {}

    def first_shortage(self, job: Job, devices: Sequence[str]) -> str:
        """Why one of the `devices` that are to train the job together has to be waited for; "" where none has."""
        sentences = (self.shortage(job, resolve_device(device), len(devices)) for device in devices)
        return next(filter(None, sentences), "")

    def shortage(self, job: Job, device: torch.device, count: int = 1) -> str:
        """Why a free `device`, one of `count`, has to be waited for: sentences with the programs on it. "" where it can start.

        It can where nobody knows better (no nvidia-smi, a CPU), and where it would not fit an empty card either: then it is
        refused with advice when it starts. The sentence stays the same while the same programs are there.
        """
        gpu = self._look().get(self._uuid_of(device)) if device.type == "cuda" else None
        if gpu is None or gpu.free >= _EMPTY * gpu.total:
            return ""
        need = self._need(job, device, gpu.total, count)
        if need is None or need <= gpu.free or need > gpu.total:
            return ""
        key = (device, need, frozenset(program.pid for program in gpu.programs))
        return self._said.setdefault(key, sentence(device, need, gpu))

    def _look(self) -> Mapping[str, GpuMemory]:
        if self._clock() - self._read_at >= LOOK_SECONDS:
            self._gpus, self._read_at = self._read(), self._clock()
        return self._gpus

    def _need(self, job: Job, device: torch.device, total: int, count: int) -> int | None:
        key = (job.key, f"{job.memory} {job.parallel}", total, count)  # a run's key leaves out how it holds the model
        if key not in self._needs:
            try:
                self._needs[key] = least_memory(job, device, total, count)
            except (WanTrainError, OSError):  # it is told when the training starts
                self._needs[key] = None
        return self._needs[key]


def least_memory(job: Job, device: torch.device, total: int, count: int = 1) -> int:
    """Bytes that must be free on a GPU of `total` bytes before the leanest plan that the job allows can be chosen.

    `count`: GPUs that train it together; where they share clips, or the base, each needs less. With the driver's context and
    the planner's margin. Kernels and attention are taken to work, and nothing is measured: a plan's memory does not depend on
    the card's speed. Errors as from reading the model's file.
    """
    card = Card(
        name="",
        free=total,
        total=total,
        free_ram=available_ram(),
        pinnable_ram=pinnable_ram(),
        **dict.fromkeys(_RATES, 1e12),
    )
    context = job.parallel.context or 1
    decision = Decision(
        info=inspect(Path(job.model.path)),
        device=device,
        dtype=arithmetic(job.model.precision, device),
        modes=wanted_modes(for_context(job, context)[0], device),
        dropout=job.adapter.dropout > 0,
    )
    planner = make_planner(job, decision, card, Gpus(count, context))
    plan = replace(plan_of(job, decision), shards=count if job.parallel.base == "sharded" else 1)
    is_chosen = job.memory.plan == "manual"
    choice = planner.describe(plan) if is_chosen else replace(planner, plan=plan).leanest()
    return int((choice.vram + MARGIN_BYTES) / (1 - MARGIN)) + constants().overhead_vram


def sentence(device: torch.device, need: int, gpu: GpuMemory) -> str:
    """What is short, because of whom, and how to go on."""
    named = [
        f"{command_of(program)}, PID {program.pid}"
        + (f", {program.num_bytes / GIB:.1f} GiB" if program.num_bytes is not None else "")
        for program in gpu.programs[:MOST_NAMED]
    ]
    more = len(gpu.programs) - len(named)
    who = "; ".join([*named, f"{more} more"] if more > 0 else named)
    who = f"on it: {who}" if who else "the driver does not say by which programs (they may be another container's)"
    return (
        f"{device} has {gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free, and this training takes {need / GIB:.1f}"
        f" at least; {who}. It starts by itself when there is room; to start at once with what is free, add --no-wait"
    )

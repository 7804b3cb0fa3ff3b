"""Measures our own trainer: the real job, model, optimizer and batches.

Nothing is left out of a step: it is timed where its report arrives, which is when the device is done with it.
"""

import gc
import json
import logging
import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional
from wan_train.benchmarks.material import Clip, make_job
from wan_train.benchmarks.step_kernels import profile_step
from wan_train.core.adapters.peft_hooks import import_adapters
from wan_train.core.devices import resolve_device
from wan_train.core.errors import WanTrainError
from wan_train.core.facts import TEXT_TOKENS
from wan_train.core.flow.objective import flow_loss, velocity_target
from wan_train.core.memory.adamw import hold_state
from wan_train.core.memory.compile import use_compile_cache
from wan_train.core.memory.deterministic import same_bits
from wan_train.core.memory.precisions.fp8_compute import Fp8ComputeLinear
from wan_train.core.serial import digest, from_dict, to_dict
from wan_train.core.settings.job import Job, ModelSpec
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.option import options_of
from wan_train.core.settings.plain import PLAIN, chosen
from wan_train.core.settings.precision import Precision, check_precision
from wan_train.core.train.batches import BatchSchedule, Prefetcher, load_drawn
from wan_train.core.train.loop import StepReport, Trainer
from wan_train.core.train.optimizers import build_optimizer
from wan_train.core.train.prepare import Prepared, prepare
from wan_train.core.train.run import FP16_LOSS_SCALE

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the step is computed, and on which clips, in this order; no clips: those of the command."""

    precision: Precision = "auto"
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    clips: tuple[str, ...] = ()
    transposed: bool = False  # weights of 8 bits are there column by column as well, as a plan may have it

    def __post_init__(self) -> None:
        check_precision(self.precision)

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """From "precision=fp8_compute keep_attention=20 clips=832x480x33,1024x1024x1". ConfigError for an unknown name."""
        known = {item.name: item for item in options_of(MemoryOptions)}
        memory: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for part in text.split():
            name, _, value = part.partition("=")
            if name == "clips":
                own[name] = value.split(",")
            elif name == "transposed":
                own[name] = value == "on"
            elif name in known:
                memory[name] = known[name].read(value)
            else:
                own[name] = value
        return from_dict(cls, {**own, "memory": memory}, "setting")

    @property
    def plan(self) -> str:
        """What differs from the defaults, in words of the job."""
        default = to_dict(MemoryOptions())
        changed = [f"{name}={value}" for name, value in to_dict(self.memory).items() if value != default[name]]
        return " ".join([f"precision={self.precision}", *changed, *(["transposed"] if self.transposed else [])])


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process measures."""

    model: str  # path
    setting: Setting
    clips: tuple[str, ...]
    work: str  # folder
    out: str  # file of lines, a row each
    steps: int = 5
    warmup: int = 2
    profile: bool = True
    dumps: str = ""  # folder of the peer's first steps; none: nothing is compared
    rank: int = 16
    scratch: str = ""  # folder for compiled code; none: one for each setting, so that a first start is a first start


def run_task(task: Task) -> None:
    """Prepare once, then measure each clip, and write its row. One that does not fit into memory is passed over."""
    with same_bits(task.setting.memory.deterministic):
        _run_task(task)


def _run_task(task: Task) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what preparing took
    import_adapters()  # as a worker does, outside of what preparing takes
    clips = [Clip.parse(text) for text in task.clips]
    setting = task.setting
    # One more step than is timed: the last report comes early, since no launches of a next step are waited for.
    job = make_job(Path(task.work) / "data", Path(task.model), clips, task.warmup + task.steps + 1, rank=task.rank)
    model = from_dict(ModelSpec, {**to_dict(job.model), "precision": setting.precision})
    job = replace(job, model=model, memory=setting.memory)
    scratch = Path(task.scratch) if task.scratch else Path(task.work) / "scratch" / digest(setting)
    cache = "warm" if any(use_compile_cache(scratch / "compiled").glob("*")) else "cold"
    start = time.perf_counter()
    device = resolve_device("auto")
    prepared = prepare(job, device, tell=lambda text: print(text, flush=True), scratch=scratch)
    if setting.transposed:
        from wan_train.core.kernels.linears import keep_transposed  # needs Triton

        for block in prepared.model.blocks:
            keep_transposed(block)
    optimizer = build_optimizer(prepared.parameters, job.optimizer)
    hold_state(optimizer, offloaded=bool(job.memory.offload_optimizer))
    prepared.model.train()
    shared = {
        "precision": setting.precision,
        "products": "fp8" if _computes_fp8(prepared) else str(prepared.dtype).removeprefix("torch."),
        "plan": setting.plan,
        "attention": prepared.features.attention,
        "memory": {**to_dict(setting.memory), **PLAIN, **chosen(setting.memory)},
        "prepare_s": round(time.perf_counter() - start, 1),
    }
    for clip, sample in zip(clips, job.data.samples, strict=True):
        one = replace(job, data=replace(job.data, samples=(sample,)))
        try:
            row = {"clip": str(clip), **shared, "cache": cache, **_measure(one, prepared, optimizer, task)}
        except (torch.OutOfMemoryError, WanTrainError) as error:
            print(f"{setting.plan}, {clip}: {str(error).splitlines()[0]}", flush=True)
            _clean_up(prepared, optimizer)
            continue
        cache = "of the clip before"
        print(json.dumps({key: value for key, value in row.items() if key not in ("memory", "profile")}), flush=True)
        with Path(task.out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    prepared.features.close()


class Clock:
    """A callback that notes when the report of each step came."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.losses: list[float] = []

    def needs_weights(self, _trainer: Trainer) -> bool:
        return False

    def __call__(self, _trainer: Trainer, report: StepReport) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(report.loss)

    def seconds(self) -> list[float]:
        """Of each step; the first from the making of this clock."""
        return [after - before for before, after in pairwise(self.times)]


def _measure(job: Job, prepared: Prepared, optimizer: torch.optim.Optimizer, task: Task) -> dict[str, Any]:
    """One clip: its steps, its memory, the kernels of one more step, and the loss on the peer's tensors."""
    schedule = BatchSchedule.of(job.data, job.loop)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batches = Prefetcher(partial(load_drawn, job, schedule), 0, device=prepared.device, ahead=2)
    clock = Clock()
    trainer = Trainer(
        job,
        model=prepared.model,
        parameters=prepared.parameters,
        optimizer=optimizer,
        batches=batches,
        callbacks=[clock],
        loss_scale=FP16_LOSS_SCALE if prepared.dtype == torch.float16 else 1.0,
    )
    try:
        trainer.train()
        memory = _memory()
        kernels = profile_step(trainer.train_step) if task.profile else None
        dump = Path(task.dumps) / f"{'x'.join(map(str, job.data.samples[0].shape))}.safetensors"
        compared = _compare(prepared, dump) if task.dumps and dump.exists() else None
    finally:
        batches.close()
    seconds = clock.seconds()
    timed = seconds[task.warmup : -1]
    middle = statistics.median(timed)
    return {
        "s": round(middle, 4),
        "s_min": round(min(timed), 4),
        "s_max": round(max(timed), 4),
        "steps": len(timed),
        "first_step_s": round(seconds[0], 2),
        "busy_share": None if kernels is None else round(min(kernels["busy_s"] / middle, 1.0), 3),
        "loss": round(clock.losses[-1], 5),
        "compared": compared,
        **memory,
        "profile": kernels,
    }


def _compare(prepared: Prepared, dump: Path) -> dict[str, float]:
    """Our loss on the very tensors of the peer's first step, the adapter set back to its start, where it adds nothing.

    By the graph that was trained with, which is compiled already.
    """
    for up in prepared.parameters[1::2]:  # A and B alternate
        up.data.zero_()
    given = {name: tensor.to(prepared.device) for name, tensor in load_file(dump).items()}
    text = functional.pad(given["text"].float(), (0, 0, 0, TEXT_TOKENS - given["text"].shape[0]))
    pred = prepared.model(given["noisy"].float(), given["timesteps"].float(), text.unsqueeze(0))
    loss = flow_loss(pred, velocity_target(given["latents"].float(), given["noise"].float())).mean().item()
    prepared.features.reset()  # no backward follows
    peer = given["loss"].item()
    return {"peer": round(peer, 6), "ours": round(loss, 6), "difference": float(f"{abs(loss - peer) / abs(peer):.2g}")}


def _memory() -> dict[str, float]:
    """GB (1e9 bytes): peaks on the device since the model was ready, and of the process in main memory.

    And how often the allocator had to give back all that it held to find room.
    """
    values = {"ram_gb": _peak_ram()}
    if torch.cuda.is_available():
        values["peak_allocated_gb"] = torch.cuda.max_memory_allocated() / GB
        values["peak_reserved_gb"] = torch.cuda.max_memory_reserved() / GB
        values["alloc_retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
    return {name: round(value, 2) for name, value in values.items()}


def _peak_ram() -> float:
    """Of this process, files that it maps included; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("VmHWM:")), 0.0)


def _computes_fp8(prepared: Prepared) -> bool:
    return any(isinstance(module, Fp8ComputeLinear) for module in prepared.model.modules())


def _clean_up(prepared: Prepared, optimizer: torch.optim.Optimizer) -> None:
    """After a step that was broken off."""
    prepared.features.reset()
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

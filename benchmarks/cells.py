"""The cells of the memory benchmark, in the process that is held to their caps: planned, trained, and written down."""

import gc
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from wan_train.benchmarks.cgroup import MemoryGroup
from wan_train.benchmarks.material import Clip, make_job
from wan_train.benchmarks.ours import GB, Setting, Task, run_task
from wan_train.core.devices import resolve_device
from wan_train.core.plan.advice import explain, what_would_fit
from wan_train.core.plan.card import Card, measure_card
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planning import make_planner, with_plan
from wan_train.core.serial import to_dict
from wan_train.core.settings.job import ModelSpec
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.wan.checkpoint import inspect

WARM_UP = 2  # steps that are not timed


@dataclass(frozen=True)
class Cell:
    """One setting; 0 for no cap."""

    shape: str
    precision: str
    cap_gb: float
    cap_ram_gb: float = 0.0
    held_ram_gb: float = 0.0  # not part of its text, as what follows: the same for all
    rank: int = 16

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From "832x480x33 fp8 8 24". ValueError for another form."""
        clip, precision, *caps = text.split()
        return cls(str(Clip.parse(clip)), precision, *map(float, caps))


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is the same for all cells of a process."""

    model_name: str
    model: str  # path
    steps: int
    compile: str
    group: MemoryGroup | None = None  # that the process joins


def run_cells(cells: Sequence[Cell], outs: Sequence[str], conditions: Conditions) -> None:
    """Measure one after the other, each into its file of `outs`; the model is read anew for each.

    They share what the process has imported and compiled, and, by their folder, the kind of attention of a clip.
    """
    if conditions.group is not None:
        conditions.group.join()
    card = measure_card(resolve_device("auto"))
    for cell, out in zip(cells, outs, strict=True):
        run_cell(cell, Path(out), conditions, card)
        _let_go()


def run_cell(cell: Cell, out: Path, conditions: Conditions, card: Card) -> dict[str, Any]:
    """Plan, train some steps under the cap, and write the row as JSON; first before the training, which may be killed."""
    device = resolve_device("auto")
    card = replace(card, free=min(card.free, int(cell.cap_gb * 2**30) or card.free))
    if caps := [cap for cap in (cell.cap_ram_gb, cell.held_ram_gb) if cap]:
        ram = int(min(caps) * GB)
        card = replace(card, free_ram=min(card.free_ram, ram), pinnable_ram=min(card.pinnable_ram, ram))
    if device.type == "cuda":
        share = cell.cap_gb * 2**30 / card.total if cell.cap_gb else 1.0
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    model, work = Path(conditions.model), out.parent
    job = make_job(work / "data", model, [Clip.parse(cell.shape)], conditions.steps, rank=cell.rank)
    spec = ModelSpec(path=job.model.path, identity=job.model.identity, precision=cell.precision)
    options = MemoryOptions(compile=conditions.compile)
    job = replace(job, model=spec, memory=options)
    start = time.perf_counter()
    decision = decide(job, inspect(model), device, work / "scratch")
    planner = make_planner(job, decision, card)
    choice = planner.choose()
    row: dict[str, Any] = {
        **asdict(cell), "model": conditions.model_name, "planned_in_s": round(time.perf_counter() - start, 2)
    }  # fmt: skip
    if choice is None:
        row |= {"plan": None, "oom": None, "why": what_would_fit(planner)}
    else:
        memory = with_plan(job, choice.plan).memory
        row |= {"plan": explain(planner, choice, steps=1000), "predicted_s": round(choice.seconds, 3)}
        row |= {"predicted_gb": round(choice.vram / GB, 2), "predicted_ram_gb": round(choice.ram / GB, 2)}
        row |= {"memory": to_dict(memory), "card": asdict(card), "oom": None}
        out.write_text(json.dumps(row), encoding="utf-8")
        warmup = WARM_UP + planner.task.graphs  # the step that records them is not timed
        row |= _train(Setting(precision=cell.precision, memory=memory), cell, out, conditions, warmup)
    out.write_text(json.dumps(row), encoding="utf-8")
    return row


def _train(setting: Setting, cell: Cell, out: Path, conditions: Conditions, warmup: int) -> dict[str, Any]:
    """What the steps after `warmup` took, or that memory ran out."""
    lines = out.with_suffix(".rows")
    lines.unlink(missing_ok=True)
    ram_peak = _PeakRam()
    error = ""
    try:
        run_task(
            Task(model=conditions.model, setting=setting, clips=(cell.shape,), work=str(out.parent), out=str(lines),
                 rank=cell.rank, steps=conditions.steps - WARM_UP, warmup=warmup, profile=False,
                 scratch=str(out.parent / "scratch"))
        )  # fmt: skip
    except torch.OutOfMemoryError as shortage:
        error = str(shortage).splitlines()[0]
    ram = ram_peak.stop()
    if not lines.exists():
        return {"oom": True, **({"error": error} if error else {})}
    found = json.loads(lines.read_text())
    names = ("attention", "peak_allocated_gb", "peak_reserved_gb", "prepare_s", "first_step_s")
    return {"oom": False, "ours_s": found["s"], "ram_gb": ram, **{name: found[name] for name in names if name in found}}


def _let_go() -> None:
    """Of a cell's model, compiled blocks and pinned memory."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()


class _PeakRam:
    """The most main memory of this process that is not a mapped file; sampled ten times a second."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)

    def stop(self) -> float:
        """GB."""
        self._done.set()
        self._thread.join()
        return round(self._peak / GB, 2)

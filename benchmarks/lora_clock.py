"""From the command to the LoRA file, by the clock: one run started as a user starts it, and what its diary says."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from wan_train.benchmarks.datasets import shares, sizes_of_steps
from wan_train.core.launch.ahead import PACK
from wan_train.core.settings.job import Job
from wan_train.core.train.events import Event, EventReader
from wan_train.core.train.run_folder import RunFolder

GIB = 2**30  # a GB of this benchmark, as caps, budgets and nvidia-smi have it
PATIENCE = 30  # seconds for a run to end that is asked to
# Of what was compiled before, for whatever a run starts: all in the folder that a cold start finds empty.
CACHES = {"TRITON_HOME": "triton", "CUDA_CACHE_PATH": "driver", "XDG_CACHE_HOME": "other"}


@dataclass(frozen=True)
class Clock:
    """When what happened, in seconds since the epoch."""

    start: float  # of the command
    end: float  # of its process
    lora: float | None  # when the file was written to its end; None: there is none
    smi_gb: float | None = None  # most memory of the card in use, above what was before; None: nvidia-smi is not there
    starts: Mapping[str, float] = field(default_factory=dict)


def run_ours(folder: Path, kept: Path, *, limit: float, tell: bool = True) -> Clock:
    """`wantrain train FOLDER` to its end, or for `limit` seconds. `kept` holds what is compiled."""
    environment = {**os.environ, **{name: str(kept / part) for name, part in CACHES.items()}}
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment.pop(name, None)
    command = [sys.executable, str(PACK / "wantrain.py"), "train", str(folder)]
    card = CardWatch()
    start = time.time()
    process = subprocess.Popen(command, env=environment, stderr=None if tell else subprocess.DEVNULL)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"not done after {limit:.0f} s: it is stopped", flush=True)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        process.wait()
    end = time.time()
    files = [path.stat().st_mtime for path in folder.glob("*.safetensors")]
    # The job is written into its folder just before the worker starts.
    worker = RunFolder(folder).job_path.stat().st_mtime
    return Clock(start, end, max(files, default=None), card.stop(), {"worker": worker})


class CardWatch:
    """The most memory that is in use of the first card of CUDA_VISIBLE_DEVICES, twice a second, by nvidia-smi."""

    def __init__(self) -> None:
        self._readings: list[int] = []
        self._process: subprocess.Popen[str] | None = None
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
        command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        with contextlib.suppress(FileNotFoundError):
            before = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            self._before = int(before) if before.isdigit() else 0
            self._process = subprocess.Popen([*command, "-lms", "500"], stdout=subprocess.PIPE, text=True)
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self._readings.append(int(line))

    def stop(self) -> float | None:
        """GB above what was in use at the start."""
        if self._process is None:
            return None
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        return round((max(self._readings, default=self._before) - self._before) / 1024, 2)


def read_run(folder: Path, job: Job, clock: Clock) -> dict[str, Any]:
    """What a run took, whether or not it came to its end. Seconds from the command's start where nothing else is said."""
    events = EventReader(RunFolder(folder).events_path).read()
    row = summarize(events, sizes_of_steps(job, job.loop.steps), shares(job), clock, steps=job.loop.steps)
    log = RunFolder(folder).log_path  # none of a run that was stopped before its process began
    told = timeline(log.read_text(encoding="utf-8") if log.exists() else "", events, clock.start)
    handed = (_since(clock.start, clock.starts.get("worker")) or 0.0, "the process that trains is told its folder")
    return {**row, "timeline": sorted([handed, *told])}


def timeline(log: str, events: Sequence[Event], start: float) -> list[tuple[float, str]]:
    """What a run's process told of itself, and what its diary holds but for the later steps: seconds after `start`."""
    found: list[tuple[float, str]] = []
    for line in log.splitlines():
        day, _, rest = line.removeprefix("[rank 0] ").partition(" ")
        clock, _, told = rest.partition(" ")
        with contextlib.suppress(ValueError):  # no line of the log's form
            when = datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S,%f")  # this machine's time
            found.append((round(when.timestamp() - start, 2), told.partition(" ")[2]))
    for event in events:
        if event["event"] != "step" or event["step"] in (1, 2) or event is events_last_step(events):
            words = " ".join(str(event[name]) for name in ("event", "step", "message") if name in event)
            found.append((round(event["time"] - start, 2), words))
    return sorted(found)


def events_last_step(events: Sequence[Event]) -> Event | None:
    """The last step of a diary."""
    return next((event for event in reversed(events) if event["event"] == "step"), None)


def summarize(
    events: Sequence[Event], sizes: Sequence[str], share: Mapping[str, float], clock: Clock, *, steps: int
) -> dict[str, Any]:
    """A row. `sizes`: that of each step; `share`: of each size in a long run."""
    done = [event for event in events if event["event"] == "step"]
    plans = [event for event in events if event["event"] == "plan"]
    firsts, steady = by_size(done, sizes)
    row: dict[str, Any] = {
        "ours_s": _since(clock.start, clock.lora),
        "ours_first_step_s": _since(clock.start, done[0]["time"] if done else None),
        "worker_first_step_s": _since(clock.starts.get("worker"), done[0]["time"] if done else None),
        "ours_step_s": weighted(steady, share),
        "done_steps": len(done),
        "process_s": _since(clock.start, clock.end),
        "smi_gb": clock.smi_gb,
        **dict.fromkeys(("promised_s", "promised_gb", "plan_step_s", "peak_reserved_gb", "peak_allocated_gb")),
        "shortages": sum("step" in plan for plan in plans),
        "sizes": {size: {"first_s": firsts[size], "step_s": steady.get(size)} for size in firsts},
        **dict.fromkeys(("peer", "peer_s", "peer_first_step_s", "peer_step_s")),
        "warnings": [event["message"] for event in events if event["event"] == "warning"],
        "errors": [event["message"] for event in events if event["event"] == "error"],
    }
    if any("reserved_gib" in step for step in done):
        row["peak_reserved_gb"] = round(max(step["reserved_gib"] for step in done), 2)
        row["peak_allocated_gb"] = round(max(step["allocated_gib"] for step in done), 2)
    if plans:
        row |= promised(plans[0], steps)
        row["plan"] = plans[0]["message"]
    if row["ours_s"] is not None and row["promised_s"]:
        row["off_s"] = round(row["ours_s"] / row["promised_s"] - 1, 3)
    return row


def promised(plan: Event, steps: int) -> dict[str, float]:
    """What a plan says that `steps` steps take, in all. Plans of before say what a step takes, or leave out what is beside."""
    around = plan.get("start_seconds", 0.0) + plan.get("sizes_seconds", 0.0)
    around += sum(one["count"] * one["seconds"] for one in plan.get("beside", {}).values())
    return {
        "promised_s": round(around + steps * plan["seconds"], 1),
        "promised_gb": round((plan["vram"] + plan.get("overhead", 0)) / GIB, 2),
        "plan_step_s": plan["seconds"],
    }


def by_size(steps: Sequence[Event], sizes: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each size's first step, and of its later ones, the median; a size that came once has none."""
    seconds: dict[str, list[float]] = {}
    for event in steps:
        seconds.setdefault(sizes[int(event["step"]) - 1], []).append(event["seconds"])
    firsts = {size: round(found[0], 3) for size, found in seconds.items()}
    return firsts, {size: round(statistics.median(found[1:]), 4) for size, found in seconds.items() if found[1:]}


def weighted(steady: Mapping[str, float], share: Mapping[str, float]) -> float | None:
    """The mean step of a long run, of the sizes that are known."""
    known = {size: share.get(size, 0.0) for size in steady}
    total = sum(known.values())
    return round(sum(steady[size] * part for size, part in known.items()) / total, 4) if total else None


def longer(row: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """The row of a run of `steps` steps, from one that was measured: with so many more of its steady steps. Marked."""
    if row.get("ours_s") is None or row.get("ours_step_s") is None:
        return None
    more = steps - row["steps"]
    found = {name: value for name, value in row.items() if name != "timeline"}
    found |= {"steps": steps, "extrapolated": True, "ours_s": round(row["ours_s"] + more * row["ours_step_s"], 1)}
    if row["plan_step_s"]:
        found["promised_s"] = round(row["promised_s"] + more * row["plan_step_s"], 1)
        found["off_s"] = round(found["ours_s"] / found["promised_s"] - 1, 3)
    if row["peer_s"] is not None:
        found["peer_s"] = round(row["peer_s"] + more * row["peer_step_s"], 1)
    return found


def read_peer(records: Sequence[Mapping[str, Any]], start: float, lora: float | None) -> dict[str, Any]:
    """A peer's own times, from the lines of its launcher: those of all sizes, whose steady steps are the later ones."""
    seconds: dict[str, list[float]] = {}
    for line in records:
        seconds.setdefault("x".join(map(str, line["shape"][1:])), []).append(line["s"])
    later = {size: found[1:] for size, found in seconds.items() if found[1:]}
    total = sum(map(len, later.values()))
    step = sum(len(found) * statistics.median(found) for found in later.values()) / total if total else None
    peak = max((line.get("peak_reserved_gb", 0.0) for line in records), default=0.0) * 1e9 / GIB
    return {
        "peer_s": _since(start, lora),
        "peer_first_step_s": _since(start, records[0]["time"] if records else None),
        "peer_step_s": None if step is None else round(step, 4),
        "peer_done_steps": len(records),
        "peer_peak_reserved_gb": round(peak, 2),
    }


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 2)

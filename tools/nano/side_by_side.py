"""Runs side by side: worker processes that keep what they have loaded, and take run after run until the time is over."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import WanTrainError
from .failure import error_line, why_failed
from .method_runs import MethodRun, Row, Runner

PACK = Path(__file__).resolve().parent.parent.parent
MARGIN = 1.25  # times the longest run of a method, or where it had none the median of all, must be left before the end
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Shift:
    """What is to be done until when, shared by the threads that lead the workers."""

    runs: list[MethodRun]  # in order; those that are taken are gone
    total_s: float
    done: Callable[[MethodRun, list[Row], float], None]  # called by one thread at a time
    started: float = field(default_factory=time.perf_counter)
    failed: list[tuple[MethodRun, str]] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=dict)  # the longest run, by method
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left_s(self) -> float:
        """Until the end."""
        return self.total_s - (time.perf_counter() - self.started)

    def take(self) -> MethodRun | None:
        """The next run that can end in time."""
        with self._lock:
            for place, run in enumerate(self.runs):
                if self._expected(run) <= self.left_s:
                    return self.runs.pop(place)
            return None

    def _expected(self, run: MethodRun) -> float:
        of_all = statistics.median(self._seconds.values()) if self._seconds else 0.0
        return MARGIN * self._seconds.get(run.method.name, of_all)

    def end(self, run: MethodRun, answer: dict[str, Any], seconds: float) -> None:
        """Of a run: its rows, or why it has none."""
        with self._lock:
            if "error" in answer:
                self.failed.append((run, answer["error"]))
                return
            self._seconds[run.method.name] = max(seconds, self._seconds.get(run.method.name, 0.0))
            self.done(run, answer["rows"], seconds)


def work_side_by_side(
    shift: Shift, *, devices: Sequence[str], processes: int, arguments: Sequence[str], logs: Path
) -> None:
    """Make the runs of a shift, `processes` at a time, spread over the devices; returns when all are made or time is over.

    `logs`: folder of what the workers print.
    """
    logs.mkdir(parents=True, exist_ok=True)
    leaders = [
        threading.Thread(
            target=_lead,
            args=(shift, devices[number % len(devices)], arguments, logs / f"log-methods-{number}.txt"),
            daemon=True,
        )
        for number in range(processes)
    ]
    for leader in leaders:
        leader.start()
    for leader in leaders:
        leader.join()


def alone_on(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """What a process calls a device that is all it sees, and what of its environment says so: "cuda:1" becomes "cuda"."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return device, {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return kind, {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible != [""] else number}


def _lead(shift: Shift, device: str, arguments: Sequence[str], log: Path) -> None:
    """Keep one worker busy; one that ended within a run is replaced, one that can't start is not."""
    device, seen = alone_on(device, os.environ)
    log.write_text("", encoding="utf-8")
    while shift.runs and shift.left_s > 0:
        with log.open("a", encoding="utf-8") as errors:  # one after another
            worker = subprocess.Popen(
                [sys.executable, "-m", "tools.nano", "methods", "--worker", *arguments, "--device", device],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=PACK,
                env={**os.environ, **ONE_THREAD, **seen},
            )  # fmt: skip
        watch = threading.Timer(max(0.0, shift.left_s), worker.kill)
        watch.start()
        try:
            if not lead_worker(shift, worker, log):
                return
        finally:
            watch.cancel()
            worker.kill()
            worker.wait()


def lead_worker(shift: Shift, worker: subprocess.Popen[str], log: Path) -> bool:
    """Have it work until there is no more: False. True where it ended before, and another is to go on. `log`: its errors."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if not worker.stdout.readline():  # "ready"
        if shift.left_s > 0:
            print(f"a worker could not start: {why_failed(worker.wait(), log)}", flush=True)
        return False
    while (run := shift.take()) is not None:
        start = time.perf_counter()
        worker.stdin.write(json.dumps(run.as_json()) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        if not line:
            if shift.left_s > 0:
                shift.end(run, {"error": why_failed(worker.wait(), log)}, 0.0)
            return shift.left_s > 0
        answer = json.loads(line)
        if "ends" in answer:
            answer["error"] = f"{error_line(answer['error'])} (all of it: {log})"
        shift.end(run, answer, time.perf_counter() - start)
        if answer.get("ends"):
            return True
    return False


def work(make: Callable[[], Runner]) -> None:
    """What a worker does: runs come as lines of JSON, rows go as such. Whatever else is printed goes to the errors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner = make()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"rows": runner.rows(MethodRun.from_json(json.loads(line)))}
        except WanTrainError as error:  # of any method: the others go on
            answer = {"error": str(error)}
        except Exception as error:  # such as CUDA's, after which a process can't go on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}", "ends": True}
        print(json.dumps(answer), file=answers, flush=True)
        if "ends" in answer:
            return

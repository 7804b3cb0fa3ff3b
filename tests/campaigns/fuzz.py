"""Broken and hostile files of every kind that the pack reads: each ends with a value or an error that names the file."""

import json
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

from .campaign import Campaign, Report
from .fuzz_inputs import NAMES, make_bases, mutate
from .fuzz_targets import DEEDS, TARGETS, nonsense

HANG_SECONDS = 10  # of a processor
STUCK_SECONDS = 600  # by the clock, for a process that waits for something
START_SECONDS = 120
WORKER = Path(__file__).with_name("fuzz_worker.py")


class Watched:
    """A process that reads files; killed and replaced when it crashes or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str] = queue.Queue()

    def start(self) -> None:
        """So that the first try does not wait for it."""
        self._running()

    def read(self, kind: str, path: Path, chance: int) -> tuple[str, str]:
        """("value", "named", "unnamed", "crash" or "hang", what came of it)."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(json.dumps([kind, str(path), chance]) + "\n")
        process.stdin.flush()
        reply = self._wait(process)
        if reply is None:
            self.close()
            return "hang", f"no answer within {HANG_SECONDS} s of work or {STUCK_SECONDS} s in all"
        if not reply:
            code = process.wait()
            self.close()
            return "crash", f"the process ended with {code}"
        outcome, told = json.loads(reply)
        return outcome, told

    def _wait(self, process: "subprocess.Popen[str]") -> str | None:
        """The answer; None if it does not come. On a busy machine the process's own time tells how long it works."""
        times = psutil.Process(process.pid)
        begun, start = _worked(times), time.monotonic()
        while True:
            try:
                return self._replies.get(timeout=0.5)
            except queue.Empty:
                if _worked(times) - begun > HANG_SECONDS or time.monotonic() - start > STUCK_SECONDS:
                    return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._replies = queue.Queue()
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=environment,
            )
            threading.Thread(target=_pump, args=(self._process, self._replies), daemon=True).start()
            assert self._replies.get(timeout=START_SECONDS) == "ready\n", "the reading process does not start"
        return self._process


def _worked(process: psutil.Process) -> float:
    """Seconds of processor time."""
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended
        return 0.0
    return times.user + times.system


def _pump(process: "subprocess.Popen[str]", replies: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        replies.put(line)
    replies.put("")


def lay_out(folder: Path, number: int, seed: int, bases: dict[str, bytes]) -> tuple[str, Path, int, str]:
    """Put the files of one try into the empty `folder`: its kind, its file, a number for the reader, how it was made."""
    rng = random.Random(f"{seed} {number}")
    style, data, deed = rng.random(), None, None
    if style < 0.35:
        index = number % len(TARGETS)
        kind, make = TARGETS[index]
        how, data = f"target {index}", make(rng, bases)
    elif style < 0.38:
        kind, deed = rng.choice(DEEDS)
        how, data = deed.__name__, bases[kind]
    else:
        kind = rng.choice(list(bases))
        how = "mutated" if rng.random() < 0.97 else "nonsense"
        data = mutate(rng, bases[kind], list(bases.values())) if how == "mutated" else nonsense(rng)
    path = folder / NAMES[kind]
    path.write_bytes(data)
    _neighbours(kind, path, bases)
    if deed is not None:
        deed(rng, path)
    return kind, path, rng.randrange(1000), how


def _neighbours(kind: str, path: Path, bases: dict[str, bytes]) -> None:
    """What belongs beside the file so that it is read as it would be."""
    if kind == "index":
        path.with_name("try-part.safetensors").write_bytes(bases["model"])
    elif kind == "config":
        path.with_name("model.safetensors").write_bytes(bases["model"])
    elif path.suffix not in (".safetensors", ".gguf", ".pth"):
        path.with_name("good.png").write_bytes(bases["png"])
        path.with_name("good.txt").write_text("a good one", encoding="utf-8")
        if kind == "caption":
            path.with_suffix(".png").write_bytes(bases["png"])
        else:
            path.with_suffix(".txt").write_text("a try", encoding="utf-8")


def attack(tries: int, seed: int, place: Path) -> Report:
    """Read `tries` broken files; those that fail stay in `place`."""
    report = Report()
    (place / "bases").mkdir()
    bases = make_bases(place / "bases")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest = (0.0, "")
    watched = Watched()
    watched.start()
    try:
        for number in range(tries):
            folder = place / f"try-{number}"
            folder.mkdir()
            kind, path, chance, how = lay_out(folder, number, seed, bases)
            start = time.monotonic()
            outcome, told = watched.read(kind, path, chance)
            slowest = max(slowest, (time.monotonic() - start, f"try {number}, {kind}, {how}"))
            counts[kind][outcome] += 1
            report.tries += 1
            holds = outcome in ("value", "named")
            report.check(holds, f"try {number} of seed {seed} ({kind}, {how}): {outcome}: {told}")
            if holds:
                shutil.rmtree(folder)
    finally:
        watched.close()
    for kind, count in sorted(counts.items()):
        report.facts[kind] = ", ".join(f"{number} {outcome}" for outcome, number in sorted(count.items()))
    total = sum(counts.values(), Counter())
    report.facts["all"] = ", ".join(f"{number} {outcome}" for outcome, number in sorted(total.items()))
    report.facts["slowest"] = f"{slowest[0]:.1f} s ({slowest[1]})"
    return report


CAMPAIGN = Campaign(attack=attack, short=150, long=10_000)

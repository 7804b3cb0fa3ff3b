"""Looking at runs of the host from outside: their folders, steps and processes."""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from wan_train.core.train.events import EventReader, read_history
from wan_train.tests.host.graphs import data_graph, node
from wan_train.tests.host_server import PATIENCE_S


def run_folders(host) -> set[Path]:
    return {path for path in (host.base / "output" / "wan_train" / "runs").glob("*") if path.is_dir()}


def set_aside_runs(host) -> None:
    """Move all run folders out of the ComfyUI's sight."""
    for number, folder in enumerate(run_folders(host)):
        aside = host.base / "aside" / f"{time.monotonic_ns()}_{number}"
        aside.mkdir(parents=True)
        folder.rename(aside / folder.name)


def encode_shapes(host) -> None:
    """Make the caches of the usual dataset: with them a training that can't be run is refused by its own node."""
    prompt = data_graph()
    for name in ("latents", "text"):
        prompt[f"seen_{name}"] = node("PreviewAny", source=[name, 0])
    assert succeeded(host.run(prompt))


def succeeded(entry) -> bool:
    ok = entry["status"]["status_str"] == "success"
    if not ok:
        sys.stderr.write(f"{entry['status']['messages'][-1]}\n")  # pytest shows it where success was expected
    return ok


def worker_pids(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):  # where training processes are
        with suppress(OSError):
            if path.readlink() == folder:
                found.append(int(path.parent.name))
    return found


def until(found: Callable[[], Any], what: str, timeout: float = PATIENCE_S) -> Any:
    """Poll until there is something; that."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"this did not come: {what}")


def await_step(folder: Path, step: int) -> int:
    """Wait until the run has made a step above `step`; the newest step."""

    def newest() -> int:
        found = max(read_history(folder / "events.jsonl").losses, default=0)
        return found if found > step else 0

    return until(newest, f"a step above {step} in {folder}")


def starts_of(folder: Path) -> list[int]:
    """The steps that each attempt began with."""
    return [e["step"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "start"]


def await_start(folder: Path, attempt: int) -> int:
    """Wait for the attempt's start; the step that it begins with."""
    starts = until(lambda: starts_of(folder)[attempt - 1 :], f"the start of attempt {attempt} in {folder}")
    return starts[0]


def new_folder(host, before: set[Path]) -> Path:
    found = until(lambda: [p for p in run_folders(host) - before if (p / "job.json").exists()], "a new run folder")
    return found[0]


def same_weights(a: Path, b: Path) -> bool:
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def train_anew(host, prompt) -> Path:
    """Train a copy of the same job in a folder of its own, never stopped; its LoRA."""
    before = run_folders(host)
    assert succeeded(host.run(prompt))
    (folder,) = run_folders(host) - before
    aside = host.base / "aside" / folder.name
    shutil.move(folder, aside)
    return next(aside.glob("*.safetensors"))

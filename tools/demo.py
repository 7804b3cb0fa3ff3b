"""`python run.py demo`: the whole graph on a CPU, from captioned clips to a video with the new LoRA. Stdlib only."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from . import headless_demo
from .comfyui import SetupError, UnreachableError, fetch_host, find_host, host_version, say
from .environment import ensure_python
from .server import HostError, Server, failure, output_files, run_server
from .workflow import Json, WorkflowError, ui_to_api

LEFT_OUT = (
    ".git",
    ".venv",
    ".demo",
    ".ci",
    ".github",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "node_modules",
    ".versions",
    "tests",
    "benchmarks",
)
PACK_NAME = "ComfyUI-WanTrain"
TIMEOUT_S = 3600.0
PRINT_EVERY_S = 2.0


def copy_pack(pack: Path, base: Path) -> Path:
    """Put a fresh copy of the pack into the base directory's custom_nodes; a copy works on every system."""
    target = base / "custom_nodes" / PACK_NAME
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(pack, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return target


class Progress:
    """Prints what the runs of this demo write into their events.jsonl, at most one line per run and two seconds."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.positions = {path: path.stat().st_size for path in runs.glob("*/events.jsonl")}
        self.totals: dict[Path, int] = {}
        self.printed: dict[Path, float] = {}

    def show(self) -> None:
        """Read on in every run."""
        for path in sorted(self.runs.glob("*/events.jsonl")):
            steps = []
            for event in self._read(path):
                if event.get("event") == "step":
                    steps.append(event)
                elif event.get("event") in ("status", "plan", "warning", "finished", "stopped", "error"):
                    self._print(path, steps)
                    say(f"  {self._name(path)}: {event.get('message') or event['event']}")
                    steps = []
            if steps and time.monotonic() - self.printed.get(path, 0.0) >= PRINT_EVERY_S:
                self._print(path, steps)

    def _print(self, path: Path, steps: list[Json]) -> None:
        if not steps:
            return
        self.printed[path] = time.monotonic()
        last = steps[-1]
        of = f" of {self._total(path)}" if self._total(path) else ""
        mean = sum(step["loss"] for step in steps) / len(steps)
        say(f"  {self._name(path)}: step {last['step']}{of}, loss {mean:.4f}, learning rate {last['lr']:.2e}")

    def _read(self, path: Path) -> list[Json]:
        with path.open("rb") as file:
            file.seek(self.positions.get(path, 0))
            data = file.read()
        complete = data.rfind(b"\n") + 1
        self.positions[path] = self.positions.get(path, 0) + complete
        return [event for line in data[:complete].splitlines() if (event := _event(line))]

    def _total(self, path: Path) -> int:
        if path not in self.totals:
            job_path = path.with_name("job.json")
            job = json.loads(job_path.read_text(encoding="utf-8")) if job_path.is_file() else {}
            self.totals[path] = job.get("loop", {}).get("steps", 0)
        return self.totals[path]

    def _name(self, path: Path) -> str:
        return path.parent.name.rsplit("_", 1)[0]  # without the run's key


def _event(line: bytes) -> Json:
    """The event of a line of the diary; {} for a damaged one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and "event" in found else {}


def run_workflow(server: Server, workflow_path: Path, base: Path) -> None:
    """Queue the workflow file as the page would, follow it, and print what came of it."""
    ui = json.loads(workflow_path.read_text(encoding="utf-8"))
    prompt = ui_to_api(ui, server.object_info())
    progress = Progress(base / "output" / "wan_train" / "runs")
    start = time.monotonic()
    prompt_id = server.queue(prompt, {"extra_pnginfo": {"workflow": ui}})
    say(
        f"Running {workflow_path.name}, {len(prompt)} nodes: the clips are encoded; then both experts train, one after the "
        "other; at the end a video is sampled without and with the LoRA. In all two to three minutes on two cores."
    )
    entry = server.wait(prompt_id, TIMEOUT_S, progress.show)
    problem = failure(entry, prompt)
    if problem:
        raise HostError(f"{problem} (the whole log: {server.log_path})")
    say(f"Done in {time.monotonic() - start:.0f} s. The results:")
    name = next((n["inputs"]["lora_name"] for n in prompt.values() if n["class_type"] == "TrainLoRAStage"), "")
    for path in lora_files(base, name):
        say(f"  LoRA: {path}")
    for node_id, paths in output_files(entry, base).items():
        title = prompt[node_id]["_meta"]["title"]
        for path in paths:
            say(f"  {title}: {keep_file(path, title, base)}")


def keep_file(path: Path, title: str, base: Path) -> Path:
    """The path of an output that stays: ComfyUI empties its temp folder when it stops, so such files are copied."""
    if base / "temp" not in path.parents:
        return path
    name = "_".join(re.findall(r"[a-z0-9]+", title.lower()))
    target = base / "output" / f"{name}{path.suffix}"
    shutil.copyfile(path, target)
    return target


def lora_files(base: Path, name: str) -> list[Path]:
    """The newest LoRA file of each expert with this name, or this name and a number, wherever the host keeps LoRAs."""
    found = []
    for stage in ("high", "low"):
        pattern = re.compile(rf"{re.escape(name)}(_v\d+)?_{stage}_noise\.safetensors")
        paths = [
            path
            for folder in (base / "models" / "loras", base / "output")
            for path in folder.rglob("*.safetensors")
            if pattern.fullmatch(path.name) and "wan_train" not in path.relative_to(base).parts
        ]
        found += sorted(paths, key=lambda path: path.stat().st_mtime)[-1:]
    return found


def find_or_fetch(pack: Path) -> Path | None:
    """A ComfyUI; None, with a word about it, where none is here and none can be fetched."""
    try:
        return find_host(pack, os.environ, Path.home()) or fetch_host(pack)
    except UnreachableError as error:
        say(f"{error} Until then the same job runs without ComfyUI, by the command line.")
        return None


def demo(pack: Path, *, stay: bool, fresh: bool, headless: bool) -> None:
    """Run the demo; with `stay` ComfyUI goes on until Ctrl+C, with `fresh` an earlier demo's results are removed.

    With `headless`, or where no ComfyUI can be had, the command line does the same job.
    """
    base = pack / ".demo"
    host = None if headless else find_or_fetch(pack)
    if host:
        say(f"ComfyUI {host_version(host)}: {host}")
    python = ensure_python(host, pack, tools=False)
    say(f"Python: {python}")
    if fresh:
        shutil.rmtree(base / "output", ignore_errors=True)
    if host is None:
        headless_demo.run(headless_demo.command_line(python, pack), pack, base)
        return
    copy_pack(pack, base)
    say(f"Starting ComfyUI on the CPU (log: {base / 'server.log'})")
    with run_server(python, host, base) as server:
        run_workflow(server, pack / "example_workflows" / "demo.json", base)
        where = f"(the workflow is under Templates, {PACK_NAME}, demo)"
        if not stay:  # the server ends with this
            say(f"To see it on the page {where}: python run.py demo")
        else:
            say(f"The page: {server.url} {where}")
            say("Press Ctrl+C to stop ComfyUI.")
            while True:
                server.check_alive()
                time.sleep(1)


def main(pack: Path, *, stay: bool, fresh: bool, headless: bool) -> int:
    """Run the demo; expected failures are printed as one sentence. Returns the exit status."""
    try:
        demo(pack, stay=stay, fresh=fresh, headless=headless)
        return 0
    except (SetupError, HostError, WorkflowError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 130

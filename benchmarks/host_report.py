"""What `host_on_gpu.py` reads of a ComfyUI: its runs, what its nodes say, and its log."""

import statistics
from pathlib import Path
from typing import Any

from wan_train.core.train.events import EventReader

Json = dict[str, Any]
NEVER = ("Error handling request", "could not be checked", "lora key not loaded", "CUDA error")
TRACEBACK = "Traceback (most recent call last)"


def began(runs: Path, name: str = "") -> Path | None:
    """A run of this name that has made steps."""
    for path in runs.rglob("events.jsonl"):
        if path.parent.name.startswith(name) and any(e["event"] == "step" for e in EventReader(path).read()):
            return path.parent
    return None


def diaries(runs: Path) -> dict[Path, bytes]:
    """What every run has written."""
    return {path: path.read_bytes() for path in runs.glob("*/events.jsonl")}


def story(folder: Path) -> str:
    """A run in a few lines: how long it took, its plan, what it warned of."""
    events = EventReader(folder / "events.jsonl").read()
    steps = [event for event in events if event["event"] == "step"]
    begun = [event["time"] for event in events if event["event"] == "start"]
    if not steps or not begun:
        return f"{folder.name}: no step; {[event['event'] for event in events]}"
    last = [event for event in steps if event["time"] >= begun[-1]] or steps
    pace = statistics.median(event.get("seconds", 0.0) for event in last)
    told = {event["event"]: event["message"] for event in events if event["event"] in ("plan", "warning")}
    lines = [
        f"{folder.name}: {steps[-1]['step']} steps in {len(begun)} attempts; the last took "
        f"{last[-1]['time'] - begun[-1]:.1f} s, {pace:.3f} s a step, {last[-1].get('reserved_gib', 0):.2f} GiB; "
        f"loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}; {events[-1]['event']}"
    ]
    return "\n".join([*lines, *(f"  {kind}: {message}" for kind, message in told.items())])


def said(entry: Json) -> list[str]:
    """What nodes show at the end."""
    texts = {name: output.get("text", [""])[0] for name, output in entry["outputs"].items()}
    return [f"{name}: {text}" for name, text in texts.items() if text]


def unexpected(log: str, tracebacks: int) -> list[str]:
    """What ComfyUI's log should not hold."""
    found = [line for line in log.splitlines() if any(word in line for word in NEVER)]
    parts = log.split(TRACEBACK)[1:]
    return found + (
        [f"{len(parts)} tracebacks: {part[-1500:]}" for part in parts[-1:]] if len(parts) > tracebacks else []
    )

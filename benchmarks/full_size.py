"""Trains a full-size model with random weights through the worker, as a user's run does, and writes what it took.

python benchmarks/full_size.py --model 14b --shape 832x480x33 --steps 20 --out benchmarks/results/full-size-h100.json

The weights are random (std 0.7 / sqrt(fan_in)), in the official key layout, bf16; the latents and the text of 160 tokens
are random too. Speed and memory do not depend on their values.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
from wan_train.benchmarks.material import MODELS, Clip, write_checkpoint  # noqa: E402
from wan_train.benchmarks.material import make_job as make_plain_job  # noqa: E402
from wan_train.core.settings.job import Job  # noqa: E402
from wan_train.core.train.events import EventReader  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402


def make_job(folder: Path, model: Path, clip: Clip, steps: int) -> Job:
    """The default settings of TrainLoRAStage for the high noise expert, on one random sample."""
    job = make_plain_job(folder, model, [clip], steps)
    labelled = replace(job.model, label="wan2.2-t2v-a14b")
    return replace(job, stage="high", model=labelled, timesteps=replace(job.timesteps, sigma_min=0.875))


def measure(folder: Path, job: Job) -> dict:
    """Run the worker; seconds a step (first step apart), memory, and times around it."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.write_job(job)
    start = time.time()
    command = [sys.executable, str(PACK / "wantrain.py"), "train", str(run.path)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"the worker ended with code {code}; {run.events_path}: {run.events_path.read_text()[-2000:]}")
    events = EventReader(run.events_path).read()
    steps = [e for e in events if e["event"] == "step"]
    seconds = [e["seconds"] for e in steps]
    return {
        "steps": len(steps),
        "s_per_step": round(statistics.median(seconds[1:]), 3),
        "s_per_step_min": round(min(seconds[1:]), 3),
        "s_per_step_max": round(max(seconds[1:]), 3),
        "first_step_s": seconds[0],
        "start_to_first_step_s": round(steps[0]["time"] - start - seconds[0], 1),
        "peak_allocated_gib": round(max(e["allocated_gib"] for e in steps), 2),
        "peak_reserved_gib": round(max(e["reserved_gib"] for e in steps), 2),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "lora_bytes": next(run.path.glob("*.safetensors")).stat().st_size,
    }


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--shape", nargs="+", default=["832x480x33"], help="WIDTHxHEIGHTxFRAMES, one or more")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (29 GB for 14b); default: a temporary one")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    model = work / f"random-{options.model}.safetensors"
    if not model.exists():
        write_checkpoint(model, MODELS[options.model])
    torch.cuda.empty_cache()
    rows = []
    for shape in options.shape:
        clip = Clip.parse(shape)
        folder = Path(tempfile.mkdtemp(dir=work))
        row = measure(folder, make_job(folder, model, clip, options.steps))
        rows.append(
            {
                "model": options.model,
                "shape": shape,
                "tokens": clip.tokens(MODELS[options.model]),
                "precision": "bf16",
                "rank": 16,
                **row,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "device": torch.cuda.get_device_name(0),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "peft", "safetensors")},
        },
        "command": "python benchmarks/full_size.py " + " ".join(sys.argv[1:]),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What each method of training takes at full size, beside a plain LoRA: seconds a step and memory, promised and measured.

    python benchmarks/methods.py --steps 15 --out benchmarks/results/methods-h200.json
    python benchmarks/methods.py --methods dora lokr prodigy --out ...

Every method is a run of its own by `wantrain train`, 14B from an fp8 file, on `pictures` (20, in five sizes near 960x960), with
what was compiled for the run before. Its row says how its step compares with that of the plain LoRA, which is run first.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from time_to_lora import start_report  # also makes the pack importable
from wan_train.benchmarks import speed
from wan_train.benchmarks.datasets import RunSettings, write_run
from wan_train.benchmarks.lora_clock import read_run, run_ours
from wan_train.benchmarks.material import MODELS, write_checkpoint
from wan_train.core.settings.job import Job
from wan_train.core.train.run_folder import RunFolder

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {},
    "dora": {"adapter": {"kind": "dora"}},
    "loha": {"adapter": {"kind": "loha"}},
    "lokr": {"adapter": {"kind": "lokr"}},
    "blank_preservation": {"regularizers": {"blank_preservation": 1.0}},
    "max_weight_norm": {"regularizers": {"max_weight_norm": 1.0}},
    "ema": {"ema": {"use": True}},
    "huber": {"loss": {"kind": "huber"}},
    "lion": {"optimizer": {"name": "lion"}},
    "adamw8bit": {"optimizer": {"name": "adamw8bit"}},
    "lion8bit": {"optimizer": {"name": "lion8bit"}},
    "paged_adamw8bit": {"optimizer": {"name": "paged_adamw8bit"}},
    "ademamix8bit": {"optimizer": {"name": "ademamix8bit"}},
    "adafactor": {"optimizer": {"name": "adafactor"}},
    "prodigy": {"optimizer": {"name": "prodigy", "learning_rate": 1.0}},
    "schedulefree": {"optimizer": {"name": "schedulefree"}},
    "muon": {"optimizer": {"name": "muon"}},
}
SHOWN = ("ours_step_s", "plan_step_s", "promised_gb", "peak_reserved_gb", "peak_allocated_gb", "smi_gb", "shortages")


def with_method(job: Job, method: Mapping[str, Mapping[str, Any]]) -> Job:
    """The job with these options of its groups changed."""
    return replace(job, **{group: replace(getattr(job, group), **options) for group, options in method.items()})


def measure(name: str, model: Path, work: Path, steps: int, *, small: bool, limit: float) -> dict[str, Any]:
    """One row."""
    folder = work / "kept" / "methods" / name
    shutil.rmtree(folder, ignore_errors=True)
    job = write_run(folder, work / "data", model, RunSettings(dataset="pictures", steps=steps), small=small)
    job = with_method(job, METHODS[name])
    RunFolder(folder).write_job(job)
    clock = run_ours(folder, work / "kept" / "compiled", limit=limit)
    found = read_run(folder, job, clock)
    row = {"method": name, "steps": steps, **{key: found[key] for key in SHOWN}}
    return row | {key: found[key] for key in ("warnings", "errors") if found[key]}


def main() -> None:
    """Run each method and write its row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="a dry run with a toy model")
    parser.add_argument("--limit", type=float, default=120, help="seconds that one run may take")
    parser.add_argument("--total", type=float, default=0, help="seconds after which no further run is started; 0: none")
    parser.add_argument("--work", type=Path, help="folder for models, data and runs; default: in memory")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    begun, work = time.monotonic(), speed.work_folder(options.work) / "time-to-lora"
    work.mkdir(exist_ok=True)
    name = "toy" if options.small else "14b"
    model = work / f"random-{name}-fp8.safetensors"
    if not model.exists():
        speed.apart(f"writing {model.name}", write_checkpoint, model, MODELS[name], speed.DTYPES["fp8"])
    report = start_report(options.out, program="methods.py")
    for method in dict.fromkeys(["lora", *options.methods]):
        if options.total and time.monotonic() - begun > options.total:
            print(f"no time is left for {method}", flush=True)
            continue
        row = measure(method, model, work, options.steps, small=options.small, limit=options.limit)
        report["rows"] = [old for old in report["rows"] if old["method"] != method] + [row]
        plain = next(old for old in report["rows"] if old["method"] == "lora")
        if row["ours_step_s"] and plain["ours_step_s"]:
            row["times_lora"] = round(row["ours_step_s"] / plain["ours_step_s"], 3)
        print(json.dumps(row), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

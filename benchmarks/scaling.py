"""One run over several GPUs beside one GPU: samples a second, seconds a step, memory; for each way to use them.

    python benchmarks/scaling.py --gpus 2 --out benchmarks/results/scaling-h200-x2.json
    python benchmarks/scaling.py --gpus 4 --row "bf16 832x480x81 context" --out ...

A row is weights (bf16, fp8: a file in fp8, multiplied in fp8), a clip and a way: data (each GPU its own sample), context (the
tokens of each sample over all), sharded (data parallel, with the base spread over the GPUs), with cap=24 for a GPU of 24 GB.
Every run is `wantrain train` on a folder, as a user starts it; its steps are read from its diary, without the first ones. The
same on one GPU is measured once for each clip and weights. A GB is 2**30 bytes.

With --diffsynth a checkout of DiffSynth-Studio does the same by its own script, for each row of bf16 and data.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import diffsynth, musubi, speed  # noqa: E402
from wan_train.benchmarks.lora_clock import CardWatch, run_ours, timeline  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip, make_job, write_checkpoint  # noqa: E402
from wan_train.benchmarks.time_to_lora import start_report  # noqa: E402
from wan_train.core.adapters.metadata import base_model_name  # noqa: E402
from wan_train.core.settings.job import Job  # noqa: E402
from wan_train.core.settings.memory import MemoryOptions  # noqa: E402
from wan_train.core.settings.parallel import ParallelOptions  # noqa: E402
from wan_train.core.train.events import Event, EventReader  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.core.wan.checkpoint import inspect  # noqa: E402

ROWS = [
    "fp8 1024x1024x1 data",
    "fp8 832x480x33 data",
    "bf16 1024x1024x1 data",
    "bf16 832x480x33 data",
    "bf16 832x480x81 context steps=6",
    "bf16 1280x720x81 context steps=5",
    "bf16 832x480x33 sharded cap=24",
]
SKIPPED = 3  # steps before those that are counted
PRECISIONS = {"bf16": "bf16", "fp8": "fp8_compute"}
KEY = ("peer", "model", "weights", "shape", "way", "gpus", "cap_gb")


@dataclass(frozen=True)
class Row:
    """What is measured, on one GPU and on several."""

    weights: str
    clip: Clip
    way: str
    cap_gb: float = 0.0
    steps: int = 0  # 0: as many as the others

    @classmethod
    def parse(cls, text: str) -> "Row":
        """From "bf16 832x480x33 sharded cap=24 steps=6"."""
        weights, clip, way, *rest = text.split()
        more = dict(part.split("=") for part in rest)
        if weights not in PRECISIONS or way not in ("data", "context", "sharded"):
            raise SystemExit(f"'{text}' is no row: give bf16 or fp8, a clip, and data, context or sharded.")
        return cls(weights, Clip.parse(clip), way, float(more.get("cap", 0)), int(more.get("steps", 0)))

    def job_on(self, gpus: int, job: Job) -> Job:
        """The job over so many GPUs; on one it has neither way nor cap."""
        loop = replace(job.loop, gradient_accumulation=1 if self.way == "context" else gpus)
        parallel = ParallelOptions(
            context=gpus if self.way == "context" else 1, base="sharded" if self.way == "sharded" else "whole"
        )
        if gpus == 1:
            return replace(job, device="cuda:0")
        devices = ",".join(f"cuda:{index}" for index in range(gpus))
        memory = MemoryOptions(budget_gb=self.cap_gb)
        return replace(job, device=devices, loop=loop, parallel=parallel, memory=memory)


def measure(row: Row, gpus: int, model: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    folder = work / "kept" / "scaling" / f"{row.weights}-{row.clip}-{row.way}-{gpus}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = make_job(work / "data", model, [row.clip], row.steps or options.steps)
    label = base_model_name(inspect(model).config, is_expert=False)
    job = replace(job, model=replace(job.model, precision=PRECISIONS[row.weights], label=label))
    job = replace(row.job_on(gpus, job), device=",".join(["cpu"] * gpus)) if options.cpu else row.job_on(gpus, job)
    RunFolder(folder).write_job(job)
    clock = run_ours(folder, work / "kept" / "compiled", limit=options.limit)
    events = EventReader(RunFolder(folder).events_path).read()
    steps = [event for event in events if event["event"] == "step"]
    times = [event["seconds"] for event in steps[SKIPPED:]]
    found: dict[str, Any] = {
        "model": "toy" if options.cpu else "14b",
        "weights": row.weights,
        "shape": str(row.clip),
        "way": row.way if gpus > 1 else "one",
        "gpus": gpus,
        "cap_gb": row.cap_gb if gpus > 1 else 0.0,
        "s_step": round(statistics.median(times), 4) if times else None,
        "samples_s": None,
        "peak_reserved_gb": round(max((event.get("reserved_gib", 0.0) for event in steps), default=0.0), 2),
        "peaks_gb": peaks(steps),
        "smi_gb": clock.smi_gb,
        "run_s": round(clock.end - clock.start, 1),
        "plans": [event["message"] for event in events if event["event"] == "plan"],
        "shortages": sum("step" in event for event in events if event["event"] == "plan"),
        "errors": [event["message"] for event in events if event["event"] == "error"],
        "warnings": [event["message"] for event in events if event["event"] == "warning"],
        "timeline": timeline(RunFolder(folder).log_path.read_text(encoding="utf-8"), events, clock.start),
    }
    if found["s_step"]:
        found["samples_s"] = round(job.loop.gradient_accumulation / found["s_step"], 4)
    return found


def measure_peer(row: Row, gpus: int, model: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run of DiffSynth-Studio, each GPU with its own sample."""
    name = "toy" if options.cpu else "14b"
    steps = row.steps or options.steps
    peer = musubi.Peer(
        checkout=options.diffsynth.expanduser().absolute(),
        packages=options.diffsynth_packages,
        model_name=name,
        model=model,
        clips=[row.clip],
        work=work,
        steps=steps - SKIPPED,
        warmup=SKIPPED,
    )
    watch, start = CardWatch(), time.monotonic()
    done = diffsynth.measure(peer, gpus, options.limit)
    seconds, smi = time.monotonic() - start, watch.stop()
    return {
        "peer": diffsynth.NAME,
        "peer_version": musubi.version(peer.checkout),
        "peer_packages": peer.package_versions(),
        "model": name,
        "weights": row.weights,
        "shape": str(row.clip),
        "way": "data" if gpus > 1 else "one",
        "gpus": gpus,
        "cap_gb": 0.0,
        "s_step": done.get("s"),
        "samples_s": round(gpus / done["s"], 4) if done else None,
        "peak_reserved_gb": max(done["peaks_gb"], default=0.0) if done else None,
        "smi_gb": smi,
        "run_s": round(seconds, 1),
        **{name: done[name] for name in ("s_min", "s_max", "first_step_s", "peaks_gb") if name in done},
    }


def peaks(steps: list[Event]) -> list[float]:
    """The most that each GPU had reserved, where the diary has it."""
    found: list[float] = []
    for event in steps:
        values = [gpu.get("reserved_gib", 0.0) for gpu in event.get("gpus", [])]
        found = [max(pair) for pair in zip(found or values, values, strict=True)]
    return [round(value, 2) for value in found]


def compare(row: dict[str, Any], one: dict[str, Any] | None) -> None:
    """How much faster than one GPU, and the share of what would be ideal."""
    if one and one["s_step"] and row["s_step"]:
        is_shared = row["way"] == "context"
        row["times"] = round(one["s_step"] / row["s_step"] if is_shared else row["samples_s"] / one["samples_s"], 3)
        row["efficiency"] = round(row["times"] / row["gpus"], 3)


def main() -> None:
    """Measure each row on one GPU and on several, and write it at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--row", action="append", metavar="ROW", help="once for each, in their order")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=float, default=150, help="seconds that one run may take")
    parser.add_argument("--total", type=float, default=0, help="seconds after which no further run is started; 0: none")
    parser.add_argument("--work", type=Path, help="folder for models, data and runs; default: in memory")
    parser.add_argument("--diffsynth", type=Path, metavar="CHECKOUT", help="measure DiffSynth-Studio, too")
    parser.add_argument(
        "--diffsynth-packages", type=Path, metavar="FOLDER", help="what 'pip install --target' made for it"
    )
    parser.add_argument("--no-ours", action="store_true", help="measure the peer alone")
    parser.add_argument("--cpu", action="store_true", help="a dry run: a toy model, ranks on the CPU")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    begun, work = time.monotonic(), speed.work_folder(options.work) / "time-to-lora"
    work.mkdir(exist_ok=True)
    report = start_report(options.out, program="scaling.py")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    for row in map(Row.parse, options.row or ROWS):
        name = "toy" if options.cpu else "14b"
        model = work / f"random-{name}-{row.weights}.safetensors"
        if not model.exists():
            speed.apart(f"writing {model.name}", write_checkpoint, model, MODELS[name], speed.DTYPES[row.weights])
        for peer in peers_of(row, options):
            for gpus in (options.gpus,) if find(report, row, name, peer) else sorted({1, options.gpus}):
                if options.total and time.monotonic() - begun > options.total:
                    print(f"no time is left for {row} on {gpus}", flush=True)
                    return
                found = (measure_peer if peer else measure)(row, gpus, model, work, options)
                if gpus > 1:
                    compare(found, find(report, row, name, peer))
                add_row(report, found, options.out)


def peers_of(row: Row, options: argparse.Namespace) -> list[str | None]:
    """Who is measured on a row; None is ours."""
    is_peers = options.diffsynth and (row.weights, row.way) == ("bf16", "data")
    return [*([] if options.no_ours else [None]), *([diffsynth.NAME] if is_peers else [])]


def add_row(report: dict[str, Any], found: dict[str, Any], out: Path) -> None:
    """Put a row in the place of the same one of before, print it, and write the file."""
    report["rows"] = [old for old in report["rows"] if any(old.get(key) != found.get(key) for key in KEY)] + [found]
    short = {key: value for key, value in found.items() if value != [] and key != "timeline"}
    print(json.dumps(short), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def find(report: dict[str, Any], row: Row, model: str, peer: str | None) -> dict[str, Any] | None:
    """The run on one GPU that a row is compared with: ours, or that of the same peer."""
    wanted = {"peer": peer, "model": model, "weights": row.weights, "shape": str(row.clip), "way": "one"}
    return next((old for old in report["rows"] if all(old.get(key) == value for key, value in wanted.items())), None)


if __name__ == "__main__":
    main()

"""What fits under a cap of GPU memory, at which pace, and how near the plan's prediction was.

python benchmarks/memory.py --model 14b --cells "832x480x33 fp8 8 24" "832x480x33 fp8 0" --out memory-h100.json

A cell is a clip, a precision, a cap in GB (2**30 bytes, as cards have them; 0: none) and, if wanted, a cap of main memory
in GB (1e9 bytes, as all that is measured here). The planner chooses, with the cap as the card's free memory; the allocator
is held to the cap, so a plan that takes more fails. Each cell has a process of its own, and its row takes the place of the
row of the same cell in the file.
"""

import argparse
import json
import platform
import shlex
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import speed  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip, make_job, write_checkpoint  # noqa: E402
from wan_train.benchmarks.ours import GB, Setting, Task, run_task  # noqa: E402
from wan_train.benchmarks.results import read_report  # noqa: E402
from wan_train.core.memory.advice import explain, what_would_fit  # noqa: E402
from wan_train.core.memory.card import measure_card  # noqa: E402
from wan_train.core.serial import to_dict  # noqa: E402
from wan_train.core.train.job import MemoryOptions, ModelSpec  # noqa: E402
from wan_train.core.train.planning import make_planner, with_choice  # noqa: E402
from wan_train.core.wan.checkpoint import inspect  # noqa: E402


@dataclass(frozen=True)
class Cell:
    """One setting; 0 for no cap."""

    shape: str
    precision: str
    cap_gb: float
    cap_ram_gb: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From "832x480x33 fp8 8 24". ValueError for another form."""
        clip, precision, *caps = text.split()
        return cls(str(Clip.parse(clip)), precision, *map(float, caps))


def run_cell(cell: Cell, model_name: str, model: str, out: str, steps: int, compiled: str) -> None:
    """Plan, train some steps under the cap, and write the row as JSON."""
    device = torch.device("cuda:0")
    cap = cell.cap_gb * 2**30 or torch.cuda.get_device_properties(device).total_memory
    card = measure_card(device)
    card = replace(card, free=min(card.free, int(cap)))
    if cell.cap_ram_gb:
        ram = int(cell.cap_ram_gb * GB)
        card = replace(card, free_ram=min(card.free_ram, ram), pinnable_ram=min(card.pinnable_ram, ram))
    torch.cuda.empty_cache()
    if cell.cap_gb:
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(device).total_memory, device)
    work = Path(out).parent
    job = make_job(work / "data", Path(model), [Clip.parse(cell.shape)], steps)
    spec = ModelSpec(path=job.model.path, identity=job.model.identity, precision=cell.precision)
    options = MemoryOptions(attention="auto", compile=compiled)
    job = replace(job, model=spec, memory=options)
    start = time.perf_counter()
    planner = make_planner(job, inspect(Path(model)), device, card)
    choice = planner.choose()
    row: dict[str, Any] = {**asdict(cell), "model": model_name, "planned_in_s": round(time.perf_counter() - start, 2)}
    if choice is None:
        row |= {"plan": None, "oom": None, "why": what_would_fit(planner)}
    else:
        memory = with_choice(job, choice).memory
        row |= {"plan": explain(planner, choice, steps=1000), "predicted_s": round(choice.seconds, 3)}
        row |= {"predicted_gb": round(choice.vram / GB, 2), "predicted_ram_gb": round(choice.ram / GB, 2)}
        row |= {"memory": to_dict(memory), "card": asdict(card), "oom": True}
        setting = Setting(precision=cell.precision, memory=memory)
        lines = Path(out).with_suffix(".rows")
        lines.unlink(missing_ok=True)
        ram_peak = _PeakRam()
        try:
            run_task(
                Task(model=model, setting=setting, clips=(cell.shape,), work=str(work), out=str(lines), steps=steps - 2,
                     warmup=2, profile=False, scratch=str(work / "scratch"))
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            row["error"] = str(error).splitlines()[0]
        if lines.exists():
            found = json.loads(lines.read_text())
            row |= {"oom": False, "ours_s": found["s"], "ram_gb": ram_peak.stop()}
            row |= {
                name: found[name]
                for name in ("attention", "peak_allocated_gb", "peak_reserved_gb", "prepare_s", "first_step_s")
            }
    Path(out).write_text(json.dumps(row), encoding="utf-8")


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


def compare(rows: list[dict[str, Any]]) -> None:
    """Give each row `resident_s`, the seconds of the same step without a cap, where that was measured."""
    free = {
        (row["model"], row["shape"], row["precision"]): row["ours_s"]
        for row in rows
        if not row["cap_gb"] and not row["cap_ram_gb"] and row.get("ours_s")
    }
    for row in rows:
        row["resident_s"] = free.get((row["model"], row["shape"], row["precision"]))


def table(rows: list[dict[str, Any]]) -> str:
    """What fits, as Markdown."""
    lines = [
        "| Clip | Precision | Cap, GB | Seconds a step | of that without a cap | Peak, GB | Main memory, GB | Plan |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in sorted(rows, key=lambda row: (row["model"], row["shape"], row["precision"], row["cap_gb"])):
        seconds, free = row.get("ours_s"), row.get("resident_s")
        cells = [
            row["shape"],
            row["precision"],
            f"{row['cap_gb']:.0f}" if row["cap_gb"] else "none",
            f"{seconds:.2f}" if seconds else "out of memory" if row["plan"] else "does not fit",
            f"{seconds / free:.2f}x" if seconds and free else "",
            f"{row['peak_reserved_gb']:.1f}" if seconds else "",
            f"{row['ram_gb']:.1f}" if seconds else "",
            row["plan"] or row["why"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Every cell in a process of its own; the file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--weights", choices=list(speed.DTYPES), default="bf16", help="dtype of the random checkpoint")
    parser.add_argument("--cells", type=Cell.parse, nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="print what the file holds, and measure nothing")
    parser.add_argument("--steps", type=int, default=5, help="of each cell, two of them before the timing")
    parser.add_argument("--compile", choices=["off", "static", "dynamic"], default="static")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one cell may take")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint; default: in memory")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    report = read_report(options.out)
    if options.table:
        print(table(report["rows"]))
        return
    report["device"] = torch.cuda.get_device_name(0)
    report["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    report["versions"] |= {**speed.versions(), "python": platform.python_version()}
    report["command"] = [*report["command"], "python benchmarks/memory.py " + shlex.join(sys.argv[1:])]
    work = speed.work_folder(options.work)
    model = work / f"random-{options.model}-{options.weights}.safetensors"
    if not model.exists():
        speed.apart("the checkpoint", write_checkpoint, model, MODELS[options.model], speed.DTYPES[options.weights])
    for cell in options.cells:
        out = work / "cell.json"
        out.unlink(missing_ok=True)
        speed.apart(
            str(cell), run_cell, cell, options.model, str(model), str(out), options.steps, options.compile,
            limit=options.limit, must=False,
        )  # fmt: skip
        row = json.loads(out.read_text()) if out.exists() else {**asdict(cell), "model": options.model, "oom": None}
        print(json.dumps({name: value for name, value in row.items() if name not in ("memory", "card")}), flush=True)
        key = ("model", "shape", "precision", "cap_gb", "cap_ram_gb")
        report["rows"] = [old for old in report["rows"] if any(old[name] != row[name] for name in key)] + [row]
        compare(report["rows"])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

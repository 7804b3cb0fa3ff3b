"""What fits under a cap of GPU memory, at which pace, and how near the plan's prediction was.

python benchmarks/memory.py --model 14b --cells "832x480x33 fp8 8 24" "832x480x33 fp8 0" --out memory-h100.json

A cell is a clip, a precision, a cap in GB (2**30 bytes, as cards have them; 0: none) and, if wanted, a cap of main memory
in GB (1e9 bytes, as all that is measured here). The planner chooses, with the cap as the card's free memory; the allocator
is held to the cap, so a plan that takes more fails. Each cell has a process of its own, and its row takes the place of the
row of the same cell in the file. --hold-ram lets that process have no more main memory, where the cap only tells the planner.
"""

import argparse
import json
import platform
import shlex
import sys
import threading
import time
from contextlib import nullcontext
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
from wan_train.benchmarks import cgroup, disk, musubi, speed  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip, make_job, write_checkpoint  # noqa: E402
from wan_train.benchmarks.memory_rows import add_row, peers_table, table, write  # noqa: E402
from wan_train.benchmarks.ours import GB, Setting, Task, run_task  # noqa: E402
from wan_train.benchmarks.results import add_peer, read_report  # noqa: E402
from wan_train.core.memory.advice import explain, what_would_fit  # noqa: E402
from wan_train.core.memory.card import measure_card  # noqa: E402
from wan_train.core.serial import to_dict  # noqa: E402
from wan_train.core.train.job import MemoryOptions, ModelSpec  # noqa: E402
from wan_train.core.train.planning import make_planner, with_choice  # noqa: E402
from wan_train.core.wan.checkpoint import inspect  # noqa: E402

RATE_BYTES = 4e9  # enough to tell a disk's rate, in seconds


@dataclass(frozen=True)
class Cell:
    """One setting; 0 for no cap."""

    shape: str
    precision: str
    cap_gb: float
    cap_ram_gb: float = 0.0
    held_ram_gb: float = 0.0  # not part of its text: the same for all

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From "832x480x33 fp8 8 24". ValueError for another form."""
        clip, precision, *caps = text.split()
        return cls(str(Clip.parse(clip)), precision, *map(float, caps))


def run_cell(
    cell: Cell, model_name: str, model: str, out: str, steps: int, compiled: str, group: cgroup.MemoryGroup | None
) -> None:
    """Plan, train some steps under the cap, and write the row as JSON; first before the training, which may be killed."""
    if group is not None:
        group.join()
    device = torch.device("cuda:0")
    cap = cell.cap_gb * 2**30 or torch.cuda.get_device_properties(device).total_memory
    card = measure_card(device)
    card = replace(card, free=min(card.free, int(cap)))
    if caps := [cap for cap in (cell.cap_ram_gb, cell.held_ram_gb) if cap]:
        ram = int(min(caps) * GB)
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
        row |= {"memory": to_dict(memory), "card": asdict(card), "oom": None}
        Path(out).write_text(json.dumps(row), encoding="utf-8")
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
        row["oom"] = True
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


def lowest_setting(model_name: str, weights: str) -> str:
    """With which musubi-tuner takes the least memory: all blocks but one swapped, and inputs of blocks in main memory.

    Its weights have 8 bits; those of a file in 8 bits it cannot scale anew.
    """
    scaled = "" if weights == "fp8" else " --fp8_scaled"
    return (
        f"--sdpa --mixed_precision bf16 --fp8_base{scaled} --blocks_to_swap {MODELS[model_name].num_layers - 1}"
        " --use_pinned_memory_for_block_swap --block_swap_h2d_only --block_swap_ring_size 1"
        " --gradient_checkpointing_cpu_offload"
    )


def measure_peer(options: argparse.Namespace, report: dict[str, Any], work: Path, model: Path) -> None:
    """musubi-tuner at its lowest memory or as is said, on each clip of the cells, into the report."""
    if options.model not in musubi.TASKS:
        print(f"musubi-tuner does not train the model {options.model}: it is left out.")
        return
    clips = {Clip.parse(cell.shape) for cell in options.cells}
    peer = musubi.Peer(
        checkout=options.musubi.expanduser(),
        packages=options.musubi_packages,
        model_name=options.model,
        model=model,
        clips=sorted(clips, key=lambda clip: clip.tokens(MODELS[options.model])),
        work=work,
        steps=options.steps - 2,
        warmup=2,
    )
    report["versions"] |= {"musubi-tuner": musubi.version(peer.checkout), **peer.package_versions()}
    for setting in options.musubi_args or [lowest_setting(options.model, options.weights)]:
        for row in musubi.measure(peer, setting, options.limit):
            print(json.dumps(row), flush=True)
            add_peer(report, options.model, row)
        write(options.out, report)


def measure_cell(options: argparse.Namespace, cell: Cell, work: Path, model: Path) -> dict[str, Any]:
    """The row of a cell, measured in a process of its own, which is held to its main memory if that is wanted."""
    out = work / "cell.json"
    out.unlink(missing_ok=True)
    row: dict[str, Any] = {**asdict(cell), "model": options.model, "oom": None}
    rate = {}
    if cell.held_ram_gb:
        disk.drop_cache(work)
        rate["disk_gbps"] = round(disk.read_rate(model, int(RATE_BYTES)) / GB, 2)
        disk.drop_cache(work)
    held = cgroup.memory_group(int(cell.held_ram_gb * GB)) if cell.held_ram_gb else nullcontext()
    with held as group:
        speed.apart(
            str(cell), run_cell, cell, options.model, str(model), str(out), options.steps, options.compile, group,
            limit=options.limit, must=False,
        )  # fmt: skip
        row |= (json.loads(out.read_text()) if out.exists() else {}) | rate
        if group is not None:
            row["held_peak_gb"] = None if group.peak is None else round(group.peak / GB, 2)
            row["ram_oom_kills"] = group.oom_kills
            if group.oom_kills:
                row["oom"] = "ram"
    return row


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. SystemExit for a held memory with a folder that would be part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--weights", choices=list(speed.DTYPES), default="bf16", help="dtype of the random checkpoint")
    parser.add_argument("--cells", type=Cell.parse, nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="print what the file holds, and measure nothing")
    parser.add_argument("--steps", type=int, default=5, help="of each cell, two of them before the timing")
    parser.add_argument("--compile", choices=["off", "static", "dynamic"], default="static")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one cell may take")
    parser.add_argument("--hold-ram", type=float, default=0.0, metavar="GB", help="all that a cell has; Linux, as root")
    parser.add_argument("--musubi", type=Path, metavar="CHECKOUT", help="measure musubi-tuner on the cells' clips, too")
    parser.add_argument(
        "--musubi-packages", type=Path, metavar="FOLDER", help="what 'pip install --target' made for it"
    )
    parser.add_argument("--musubi-args", action="append", metavar="OPTIONS", help="of it, for its lowest; repeatable")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint; default: in memory")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.cells = [replace(cell, held_ram_gb=options.hold_ram) for cell in options.cells]
    return options


def check_disk(work: Path) -> None:
    """SystemExit if the existing folder lies in main memory, where what is read from it would count against no one."""
    if disk.lies_in_memory(work, disk.mounted()):
        sys.exit(
            f"The folder {work} lies in main memory, so with --hold-ram nothing would come from a disk: choose one that "
            "is on a disk with --work."
        )


def main() -> None:
    """Every cell in a process of its own; the file is written after each."""
    options = read_options()
    report = read_report(options.out)
    if options.table:
        print(table(report["rows"]))
        if report["peers"]:
            print("\n" + peers_table(report["peers"]))
        return
    work = speed.work_folder(options.work)
    if options.hold_ram:
        check_disk(work)
    report["device"] = torch.cuda.get_device_name(0)
    report["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    report["versions"] |= {**speed.versions(), "python": platform.python_version()}
    report["command"] = [*report["command"], "python benchmarks/memory.py " + shlex.join(sys.argv[1:])]
    model = work / f"random-{options.model}-{options.weights}.safetensors"
    if not model.exists():
        speed.apart("the checkpoint", write_checkpoint, model, MODELS[options.model], speed.DTYPES[options.weights])
    for cell in options.cells:
        row = measure_cell(options, cell, work, model)
        print(json.dumps({name: value for name, value in row.items() if name not in ("memory", "card")}), flush=True)
        add_row(report["rows"], row)
        write(options.out, report)
    if options.musubi is not None:
        measure_peer(options, report, work, model)


if __name__ == "__main__":
    main()

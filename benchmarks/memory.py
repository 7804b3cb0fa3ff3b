"""What fits under a cap of GPU memory, at which pace, and how near the plan's prediction was.

python benchmarks/memory.py --model 14b --cells "832x480x33 fp8 8 24" "832x480x33 fp8 0" --out memory-h100.json

A cell is a clip, a precision, a cap in GB (2**30 bytes, as cards have them; 0: none) and, if wanted, a cap of main memory
in GB (1e9 bytes, as all that is measured here). The planner chooses, with the cap as the card's free memory; the allocator
is held to the cap, so a plan that takes more fails. Cells of one precision that follow each other share a process, and a row
takes the place of the row of the same cell in the file. --hold-ram gives each cell a process of its own, which has no
more main memory, where the cap only tells the planner.
"""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import cgroup, disk, musubi, speed  # noqa: E402
from wan_train.benchmarks.cells import WARM_UP, Cell, Conditions, run_cells  # noqa: E402
from wan_train.benchmarks.material import MODELS, Clip, write_checkpoint  # noqa: E402
from wan_train.benchmarks.memory_rows import add_row, peers_table, table, write  # noqa: E402
from wan_train.benchmarks.ours import GB  # noqa: E402
from wan_train.benchmarks.results import add_peer, read_report  # noqa: E402

Tell = Callable[[dict[str, Any]], None]

RATE_BYTES = 4e9  # enough to tell a disk's rate, in seconds


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
        steps=options.steps - WARM_UP,
        warmup=WARM_UP,
    )
    report["versions"] |= {"musubi-tuner": musubi.version(peer.checkout), **peer.package_versions()}
    for setting in options.musubi_args or [lowest_setting(options.model, options.weights)]:
        for row in musubi.measure(peer, setting, options.limit):
            print(json.dumps(row), flush=True)
            add_peer(report, options.model, row)
        write(options.out, report)


def measure_cells(options: argparse.Namespace, cells: Sequence[Cell], work: Path, model: Path, tell: Tell) -> None:
    """Give `tell` a row for each; from a process of their own, or from as many as it takes where one is killed."""
    rest = list(cells)
    while rest:
        rest = rest[_measure_some(options, rest, work, model, tell) :]


def _measure_some(options: argparse.Namespace, cells: Sequence[Cell], work: Path, model: Path, tell: Tell) -> int:
    """How many a process came to, at least the first; one that is held to its main memory comes alone."""
    outs = [work / f"cell-{number}.json" for number in range(len(cells))]
    for out in outs:
        out.unlink(missing_ok=True)
    shared, held_ram_gb, number = {}, cells[0].held_ram_gb, 0

    def tell_row() -> None:
        nonlocal number
        found = json.loads(outs[number].read_text()) if outs[number].exists() else {}
        tell({**asdict(cells[number]), "model": options.model, "oom": None, **found, **shared})
        number += 1

    def tell_those_done() -> None:
        while number + 1 < len(cells) and outs[number + 1].exists():
            tell_row()

    if held_ram_gb:
        disk.drop_cache(work)
        shared["disk_gbps"] = round(disk.read_rate(model, int(RATE_BYTES)) / GB, 2)
        disk.drop_cache(work)
    held = cgroup.memory_group(int(held_ram_gb * GB)) if held_ram_gb else nullcontext()
    with held as group:
        conditions = Conditions(
            model_name=options.model, model=str(model), steps=options.steps, compile=options.compile, group=group
        )
        what = ", ".join(map(str, cells))
        arguments = cells, [str(out) for out in outs], conditions
        limit = options.limit * len(cells)
        speed.apart(what, run_cells, *arguments, limit=limit, must=False, meanwhile=tell_those_done)
        if group is not None:
            shared["held_peak_gb"] = None if group.peak is None else round(group.peak / GB, 2)
            shared["ram_oom_kills"] = group.oom_kills
            if group.oom_kills:
                shared["oom"] = "ram"
    tell_those_done()
    tell_row()
    return number


def in_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Those that follow each other and share a process: of one precision, unless held to their main memory."""
    groups: list[list[Cell]] = []
    for cell in cells:
        if groups and cell.precision == groups[-1][-1].precision and not cell.held_ram_gb:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. SystemExit for a held memory with a folder that would be part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--weights", choices=list(speed.DTYPES), default="bf16", help="dtype of the random checkpoint")
    parser.add_argument("--cells", type=Cell.parse, nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="print what the file holds, and measure nothing")
    parser.add_argument("--steps", type=int, default=5, help="of each cell, of which two are not timed")
    parser.add_argument("--compile", choices=["off", "static", "dynamic"], default="static")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one cell may take")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA, in all cells")
    parser.add_argument("--hold-ram", type=float, default=0.0, metavar="GB", help="all that a cell has; Linux, as root")
    parser.add_argument("--musubi", type=Path, metavar="CHECKOUT", help="measure musubi-tuner on the cells' clips, too")
    parser.add_argument(
        "--musubi-packages", type=Path, metavar="FOLDER", help="what 'pip install --target' made for it"
    )
    parser.add_argument("--musubi-args", action="append", metavar="OPTIONS", help="of it, for its lowest; repeatable")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint; default: in memory")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.cells = [replace(cell, held_ram_gb=options.hold_ram, rank=options.rank) for cell in options.cells]
    return options


def check_disk(work: Path) -> None:
    """SystemExit if the existing folder lies in main memory, where what is read from it would count against no one."""
    if disk.lies_in_memory(work, disk.mounted()):
        sys.exit(
            f"The folder {work} lies in main memory, so with --hold-ram nothing would come from a disk: choose one that "
            "is on a disk with --work."
        )


def main() -> None:
    """All cells; the file is written after each."""
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
    report["device"] = speed.device_name()
    report["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    report["versions"] |= {**speed.versions(), "python": platform.python_version()}
    report["command"] = [*report["command"], "python benchmarks/memory.py " + shlex.join(sys.argv[1:])]
    model = work / f"random-{options.model}-{options.weights}.safetensors"
    if not model.exists():
        speed.apart("the checkpoint", write_checkpoint, model, MODELS[options.model], speed.DTYPES[options.weights])

    def keep(row: dict[str, Any]) -> None:
        print(json.dumps({name: value for name, value in row.items() if name not in ("memory", "card")}), flush=True)
        add_row(report["rows"], row)
        write(options.out, report)

    for cells in in_groups(options.cells):
        measure_cells(options, cells, work, model, keep)
    if options.musubi is not None:
        measure_peer(options, report, work, model)


if __name__ == "__main__":
    main()

"""From the command to the LoRA file, by the clock, on datasets of several sizes; beside peers on the same data.

python benchmarks/time_to_lora.py --out benchmarks/results/time-to-lora-h100.json \\
    --run "pictures steps=100" --run "pictures steps=100 second" --run "pictures steps=100 warm" \\
    --run "mixed steps=16 cap=8 precision=fp8 weights=fp8" --peer musubi ~/musubi-tuner

A run is a dataset (pictures, mixed, small, portrait) and what differs from the defaults: steps, accumulation, cap (GB of the
GPU's memory), precision, weights (bf16 or fp8: of the random checkpoint), options of the job's memory (compile=off), and when
it starts: cold, with nothing kept of runs before (the default), warm, after the run before it, or second: as warm, the other
expert.
Without --run: the runs above. Every row is written at once, and one that is extrapolated to 1,000 steps beside it. A GB
is 2**30 bytes here, as caps and nvidia-smi have it. Models are written into main memory and kept until --clean.
"""

import argparse
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import musubi, speed  # noqa: E402
from wan_train.benchmarks.datasets import DATASETS, RunSettings, clips_of, write_run  # noqa: E402
from wan_train.benchmarks.lora_clock import longer, read_peer, read_run, run_ours  # noqa: E402
from wan_train.benchmarks.material import MODELS, write_checkpoint  # noqa: E402
from wan_train.benchmarks.ours import Setting  # noqa: E402
from wan_train.core.errors import ConfigError  # noqa: E402

DEFAULT_RUNS = [
    "pictures steps=100",
    "pictures steps=100 second",
    "pictures steps=100 warm",
    "mixed steps=16 cap=8 precision=fp8 weights=fp8",
]
LONG = 1000  # steps of the rows that are extrapolated
KEY = ("dataset", "model", "weights", "precision", "cap_gb", "steps", "start", "options")
PEER_KEY = ("peer", "peer_setting")
When = Literal["cold", "warm", "second"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of the command."""

    recipe: RunSettings
    weights: str = "bf16"
    start: When = "cold"
    options: str = ""  # batches of a step, and the job's memory, as they were written
    memory: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Run":
        """From "mixed steps=16 cap=8 weights=fp8 compile=off warm". ValueError or ConfigError for another form."""
        dataset, *parts = text.split()
        if dataset not in DATASETS:
            raise ValueError(f"there is no dataset '{dataset}': choose from {', '.join(DATASETS)}.")
        start: When = "cold"
        own: dict[str, str] = {}
        rest: list[str] = []
        for part in parts:
            name, _, value = part.partition("=")
            if part in ("cold", "warm", "second"):
                start = part  # type: ignore[assignment]
            elif name in ("steps", "cap", "weights", "precision", "accumulation"):
                own[name] = value
            else:
                rest.append(part)
        setting = Setting.parse(" ".join(["precision=" + own.get("precision", "auto"), *rest]))
        memory = {part.partition("=")[0]: getattr(setting.memory, part.partition("=")[0]) for part in rest}
        recipe = RunSettings(
            dataset=dataset,
            steps=int(own.get("steps", 100)),
            precision=setting.precision,
            cap_gb=float(own.get("cap", 0)),
            accumulation=int(own.get("accumulation", 1)),
            second=start == "second",
            options=memory,
        )
        if own.get("weights", "bf16") not in speed.DTYPES:
            raise ValueError(f"weights are one of {', '.join(speed.DTYPES)}, got {own['weights']}.")
        words = [f"accumulation={recipe.accumulation}"] if recipe.accumulation > 1 else []
        options = " ".join([*words, *rest])
        return cls(recipe=recipe, weights=own.get("weights", "bf16"), start=start, options=options, memory=memory)

    @property
    def head(self) -> dict[str, Any]:
        """What makes the row."""
        recipe = self.recipe
        return {
            "dataset": recipe.dataset,
            "weights": self.weights,
            "precision": recipe.precision,
            "cap_gb": recipe.cap_gb,
            "steps": recipe.steps,
            "cold": self.start == "cold",
            "start": self.start,
            "options": self.options,
        }


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", action="append", metavar="RUN", help="once for each, in their order")
    parser.add_argument("--steps", type=int, help="of every run, in place of what it says")
    parser.add_argument("--cap-gb", type=float, help="of every run, in place of what it says; 0: none")
    parser.add_argument(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "CHECKOUT"),
        help="musubi or aitoolkit: measured on each dataset and steps that is run cold without a cap",
    )
    parser.add_argument("--peer-packages", type=Path, help="what 'pip install --target' made for the peers")
    parser.add_argument("--no-ours", action="store_true", help="the peers alone, beside ours that the file holds")
    parser.add_argument("--peer-args", help="in place of its fastest settings")
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument(
        "--small", action="store_true", help="a dry run: a toy model and small clips, on whatever is there"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds that one run may take")
    parser.add_argument("--total", type=float, default=0, help="seconds after which no further run is started; 0: none")
    parser.add_argument("--work", type=Path, help="folder for models, data and runs; default: in memory")
    parser.add_argument("--clean", action="store_true", help="remove that folder at the end")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the file")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure each run, write its row, go on with the next."""
    options = read_options()
    if options.table:
        print(table(json.loads(options.out.read_text(encoding="utf-8"))["rows"]))
        return
    try:
        runs = [_changed(Run.parse(text), options) for text in options.run or DEFAULT_RUNS]
    except (ConfigError, ValueError) as error:
        sys.exit(str(error))
    begun, work = time.monotonic(), speed.work_folder(options.work) / "time-to-lora"
    work.mkdir(exist_ok=True)
    report = start_report(options.out)
    for number, run in enumerate(runs):
        left = options.total - (time.monotonic() - begun) if options.total else options.limit
        if left <= 0:
            print(f"no time is left for: {run.head}", flush=True)
            continue
        measure(run, work, report, options, number, min(left, options.limit))
    print(table(report["rows"]))
    if options.clean:
        shutil.rmtree(work)


def _changed(run: Run, options: argparse.Namespace) -> Run:
    recipe = run.recipe
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    if options.cap_gb is not None:
        recipe = replace(recipe, cap_gb=options.cap_gb)
    return replace(run, recipe=recipe)


def measure(
    run: Run, work: Path, report: dict[str, Any], options: argparse.Namespace, number: int, limit: float
) -> None:
    """Ours, and each peer where the run is cold and without a cap; into the report, which is written after each."""
    name = "toy" if options.small else options.model
    model = work / f"random-{name}-{run.weights}.safetensors"
    if not model.exists():
        speed.apart(f"writing {model.name}", write_checkpoint, model, MODELS[name], speed.DTYPES[run.weights])
    kept = work / "kept"
    if run.start == "cold":
        shutil.rmtree(kept, ignore_errors=True)
    folder = kept / "runs" / f"{number}-{run.recipe.dataset}-{run.start}"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"== {json.dumps({'model': name, **run.head})}", flush=True)
    if options.no_ours:
        row = known_row(report, {"model": name, **run.head})
    else:
        job = write_run(folder, work / "data", model, run.recipe, small=options.small)
        clock = run_ours(folder, kept / "compiled", limit=limit)
        row = {"model": name, **run.head, **read_run(folder, job, clock)}
        add_row(report, row, options.out)
    if run.start == "cold" and not run.recipe.cap_gb:
        for peer, checkout in options.peer:
            add_row(report, row | measure_peer(peer, Path(checkout), run, model, work, options), options.out)


def known_row(report: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Ours of the same run, which the file holds already. SystemExit if it does not."""
    found = next((row for row in report["rows"] if all(row[name] == head[name] for name in KEY)), None)
    if found is None:
        sys.exit(f"the file holds no run of ours that is {head}: leave out --no-ours.")
    return found


def measure_peer(
    name: str, checkout: Path, run: Run, model: Path, work: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The same data and steps by a peer's own script."""
    clips = clips_of(run.recipe.dataset, small=options.small)
    model_name = "toy" if options.small else options.model
    peer = musubi.Peer(
        checkout=checkout.expanduser().absolute(),
        packages=options.peer_packages,
        model_name=model_name,
        model=model,
        clips=list(clips),
        work=work,
        steps=1,
        warmup=0,
        samples=clips,
        num_steps=run.recipe.steps,
    )
    kind = speed.PEERS[name]
    outputs = {"musubi": work / "musubi-out", "aitoolkit": work / f"aitoolkit-{model_name}" / "out"}[name]
    records = work / f"{name}-records.jsonl"
    shutil.rmtree(outputs, ignore_errors=True)
    setting = options.peer_args or kind.default_settings(peer)[0]
    if name == "musubi" and run.weights == "fp8" and not options.peer_args:
        setting += " --fp8_base"
    print(f"== {kind.name} on {run.recipe.dataset}: {setting}", flush=True)
    start = time.time()
    kind.measure(peer, setting, options.limit)
    lines = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    loras = [path.stat().st_mtime for path in outputs.rglob("*.safetensors")]
    found = read_peer(lines, start, max(loras, default=None) if len(lines) == run.recipe.steps else None)
    return {"peer": kind.name, "peer_setting": setting, "peer_version": kind.version(peer.checkout), **found}


def start_report(path: Path, program: str = "time_to_lora.py") -> dict[str, Any]:
    """The report to add to, by this `program`. SystemExit if the file is of another device."""
    device = device_name()
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"device": device, "rows": []}
    if report["device"] != device:
        sys.exit(f"{path} holds results of {report['device']}, and this is {device}: choose another --out.")
    command = f"python benchmarks/{program} " + shlex.join(sys.argv[1:])
    report["command"] = [*(old for old in report.get("command", []) if old != command), command]
    report |= {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "versions": speed.versions(), "gb": 2**30}
    return report


def device_name() -> str:
    """Of the GPU, found without taking any of its memory; without one, the processor's kind."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        name = ""
    return name or f"CPU, {platform.machine()}"


def add_row(report: dict[str, Any], row: dict[str, Any], out: Path) -> None:
    """Put a row, and the longer run that it makes known, in the place of those of the same run; write the file."""
    for new in filter(None, (row, longer(row, LONG) if row["steps"] < LONG else None)):
        same = [old for old in report["rows"] if all(old[name] == new[name] for name in KEY)]
        alone = [old for old in same if all(old.get(key) == new.get(key) for key in PEER_KEY) or not old.get("peer")]
        report["rows"] = [old for old in report["rows"] if old not in alone] + [new]
    short = {name: value for name, value in row.items() if name not in ("warnings", "errors") or value}
    print(json.dumps(short), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| Dataset | Precision | Cap, GB | Steps | Start | To the LoRA | promised | first step done | s/step | Peak, GB |"
        " promised, GB | Shortages | Peer | its LoRA |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        mark = "about " if row.get("extrapolated") else ""
        cells = [
            row["dataset"],
            row["precision"] + (f", {row['options']}" if row["options"] else ""),
            f"{row['cap_gb']:g}" if row["cap_gb"] else "none",
            f"{row['steps']:,}",
            row["start"],
            mark + _seconds(row["ours_s"]) if row["ours_s"] is not None else f"not done ({row['done_steps']} steps)",
            _seconds(row.get("promised_s")),
            _seconds(row["ours_first_step_s"]),
            "" if row["ours_step_s"] is None else f"{row['ours_step_s']:.2f}",
            *(_number(row.get(name)) for name in ("peak_reserved_gb", "promised_gb")),
            str(row["shortages"]),
            row.get("peer") or "",
            mark + _seconds(row["peer_s"]) if row.get("peer_s") is not None else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()

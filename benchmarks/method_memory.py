"""Memory of every method of training: what the planner promises, and what a run takes.

    python benchmarks/method_memory.py --total 450 --out benchmarks/results/method-memory-h200.json
    python benchmarks/method_memory.py --table benchmarks/results/method-memory-h200.json

A model of 14B's width with few blocks, random, so that a run takes seconds: all methods one after another in this process, each
on pictures of one size. Each is the beginning of a run of 1,000 steps and is stopped after a few: a plan for few steps would do
without kernels and CUDA graphs, which take seconds to make. Small pictures have CUDA graphs, larger ones none. Rows are written
as they are made; a command that is given again makes what is missing, and what failed. `off`: what was taken, the
driver's part included, beside the promise; one of more than 7 % is a fault of the planner's. The allocator is set as that of
a training process, whose segments grow; `--fixed-segments` is how it is on Windows, which has no others.
"""

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks import speed  # noqa: E402
from wan_train.benchmarks.lora_clock import GIB  # noqa: E402
from wan_train.benchmarks.material import Clip, make_job, write_checkpoint  # noqa: E402
from wan_train.core.adapters.kind import ADAPTER_KINDS  # noqa: E402
from wan_train.core.facts import BOUNDARY_T2V_A14B  # noqa: E402
from wan_train.core.flow.losses import LOSSES  # noqa: E402
from wan_train.core.flow.weightings import WEIGHTINGS  # noqa: E402
from wan_train.core.optimizers import OPTIMIZERS  # noqa: E402
from wan_train.core.settings.job import CaptionText, ExpertTurns, Job, ModelSpec  # noqa: E402
from wan_train.core.settings.memory import MemoryOptions  # noqa: E402
from wan_train.core.train.crepa import crepa_identity  # noqa: E402
from wan_train.core.train.events import EventReader, EventWriter  # noqa: E402
from wan_train.core.train.run import RunStoppedError, run_job  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.core.wan.checkpoint import inspect  # noqa: E402
from wan_train.core.wan.config import WanConfig  # noqa: E402
from wan_train.tools.miniature import wan_vae  # noqa: E402

MODELS = {
    "wide": WanConfig(num_layers=6),  # 14B's blocks
    "toy": WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=3),  # for a dry run on a CPU
}
PRECISIONS = ("bf16", "fp8")
LABEL = "wan2.2-t2v-a14b"
LIMIT = 0.07  # of the promise
PLANNED_STEPS = 1000  # of the run, of which the first few are made
KNOWN = ("card-*.json", "compiled")  # of a run's cache: what was measured of the card, and what was compiled
Change = Callable[[Job], Job]


def group(place: str, **values: Any) -> Change:
    """Options of one group changed."""
    return lambda job: replace(job, **{place: replace(getattr(job, place), **values)})


def together(*changes: Change) -> Change:
    """One after another."""

    def change(job: Job) -> Job:
        for each in changes:
            job = each(job)
        return job

    return change


def with_class_word(job: Job) -> Job:
    """Each caption has one with a class word: its own text, of which neither time nor memory depends."""
    samples = tuple(
        replace(each, class_texts=(CaptionText(path=each.text_path, key=f"class-{each.text_key}"),))
        for each in job.data.samples
    )
    return replace(job, data=replace(job.data, samples=samples))


def _optimizer(name: str) -> Change:
    options = {"prodigy": {"learning_rate": 1.0}, "custom": {"path": "torch.optim.NAdam"}}.get(name, {})
    return group("optimizer", name=name, **options)


METHODS: dict[str, Change] = {
    "lora": lambda job: job,
    **{f"adapter {name}": group("adapter", kind=name) for name in ADAPTER_KINDS.names},
    "adapter lokr whole": group("adapter", kind="lokr", lokr_full=True, lokr_factor=16),
    "adapter rank 128": group("adapter", rank=128, alpha=128.0),
    "adapter attention": group("adapter", targets=("self_attn", "cross_attn")),
    "adapter dropout": group("adapter", dropout=0.1),
    "adapter rank and module dropout": group("adapter", rank_dropout=0.1, module_dropout=0.1),
    **{f"optimizer {name}": _optimizer(name) for name in OPTIMIZERS.names},
    "optimizer lora plus": group("optimizer", lora_plus=4.0),
    "optimizer clip by value": group("optimizer", clip_by="value", max_grad_norm=0.01),
    **{f"loss {name}": group("loss", kind=name) for name in LOSSES.names},
    **{f"weighting {name}": group("loss", weighting=name) for name in WEIGHTINGS.names},
    "contrastive guidance": group("loss", contrastive_guidance=3.0),
    "differential guidance": group("loss", differential_guidance=3.0),
    "output preservation": together(with_class_word, group("regularizers", output_preservation=1.0)),
    "adaptive preservation": together(
        with_class_word, group("regularizers", output_preservation=1.0, preservation_target=0.1)
    ),
    "single pass": together(with_class_word, group("regularizers", output_preservation=1.0, single_pass=True)),
    "single pass of three": together(
        with_class_word,
        group("regularizers", output_preservation=1.0, blank_preservation=1.0, single_pass=True),
    ),
    "blank preservation": group("regularizers", blank_preservation=1.0),
    "prior preservation": together(
        group("regularizers", prior_preservation=True),
        lambda job: replace(
            job,
            data=replace(
                job.data, samples=tuple(replace(each, is_regularization=True) for each in job.data.samples[:1])
            ),
        ),
    ),
    "weight norms": group("regularizers", max_weight_norm=1.0),
    "ema": group("ema", use=True),
    "tread": group("tread", routes="1 to -2: 0.5"),
    "rollout": group("rollout", steps=4, probability=1.0),
    "direction": group("rollout", steps=2, probability=1.0, direction=10.0),
    "strata": group("timesteps", strata=4, bias="favor_high_noise"),
    "accumulation": group("loop", gradient_accumulation=4),
    "batches of 2": group("loop", batch_size=2),
    "crepa": lambda job: job,  # with files: `Bench.job`
    "shared lora": lambda job: job,
}


class Bench:
    """Models, data and runs below one folder."""

    def __init__(self, work: Path, model: str, steps: int) -> None:
        self._work, self._steps, self._config = work, steps, MODELS[model]
        self._files = [work / f"{model}-{number}.safetensors" for number in range(2)]
        self._is_small = model == "toy"
        self._known = work / "known"

    def model(self, number: int = 0) -> Path:
        """The first or the second expert, random."""
        path = self._files[number]
        if not path.exists():
            write_checkpoint(path, self._config)
        return path

    def job(self, method: str, clip: Clip, precision: str) -> Job:
        """That of a method, on two pictures."""
        base = make_job(self._work / "data", self.model(), [clip], PLANNED_STEPS)
        (sample,) = base.data.samples
        data = replace(base.data, samples=(sample, replace(sample, name="second")))
        chosen = "auto" if self._is_small else precision
        base = replace(
            base,
            data=data,
            stage="high",
            timesteps=replace(base.timesteps, sigma_min=BOUNDARY_T2V_A14B, sigma_max=1.0),
            model=replace(base.model, precision=chosen, label=LABEL),
            memory=MemoryOptions(),
            adapter=replace(base.adapter, rank=16, alpha=16.0),
        )
        if method == "crepa":
            base = self._with_crepa(base)
        if method == "shared lora":
            base = self._with_other(base, chosen)
        return METHODS[method](base)

    def _with_crepa(self, job: Job) -> Job:
        """DINOv2 of the largest's width, with one layer: features are made before the first step."""
        folder, vae = self._work / "dinov2", self._work / "vae.safetensors"
        if not folder.exists():
            from transformers import Dinov2Config, Dinov2Model

            width = 12 if self._is_small else 1536
            config = Dinov2Config(hidden_size=width, num_hidden_layers=1, num_attention_heads=2, image_size=28)
            Dinov2Model(config).save_pretrained(folder, safe_serialization=True)
        if not vae.exists():
            from safetensors.torch import save_file

            save_file(wan_vae(6), vae)
        options = replace(job.crepa, weight=0.5, encoder=str(folder), vae=str(vae), block=1, image_size=224)
        return replace(job, crepa=options, crepa_identity=crepa_identity(options))

    def _with_other(self, job: Job, precision: str) -> Job:
        path = self.model(1)
        other = ModelSpec(path=str(path), identity=inspect(path).identity, label=LABEL, precision=precision)
        window = replace(job.timesteps, sigma_min=0.0, sigma_max=1.0)
        turns = ExpertTurns(every=1, boundary=BOUNDARY_T2V_A14B)
        return replace(job, stage="both", timesteps=window, other_expert=other, turns=turns)

    def row(self, method: str, clip: Clip, precision: str, device: torch.device) -> dict[str, Any]:
        """Of one run. Each has a folder of its own above it: a plan knows the card, and learns of no other run."""
        folder = RunFolder(self._work / "runs" / f"{method} {clip} {precision}".replace(" ", "_") / "runs" / "run")
        shutil.rmtree(folder.path.parents[1], ignore_errors=True)
        folder.path.mkdir(parents=True)
        folder.scratch_path.mkdir(parents=True)
        self._known.mkdir(exist_ok=True)
        _move_known(self._known, folder.scratch_path)
        job = self.job(method, clip, precision)
        folder.write_job(job)
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        head = {"method": method, "clip": str(clip), "precision": precision}
        reader, seen = EventReader(folder.events_path), list[Mapping[str, Any]]()

        def is_over() -> bool:
            seen.extend(reader.read())
            return sum(event["event"] == "step" for event in seen) >= self._steps

        try:
            with suppress(RunStoppedError):
                run_job(folder, EventWriter(folder.events_path), device, is_over)
        except Exception as error:  # of any method: the others go on
            traceback.print_exc()
            return {**head, "error": f"{type(error).__name__}: {error}"}
        finally:
            _move_known(folder.scratch_path, self._known)
        return {**head, **measured([*seen, *reader.read()])}


def _move_known(source: Path, target: Path) -> None:
    """What any run may know, from one cache to another."""
    for pattern in KNOWN:
        for path in source.glob(pattern):
            shutil.rmtree(target / path.name, ignore_errors=True)
            shutil.move(path, target / path.name)


def measured(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Promise and peak of a run in GB, by how much the peak is off, and the median seconds of the later half of its steps."""
    plan = next((event for event in events if event["event"] == "plan"), None)
    steps = [event for event in events if event["event"] == "step"]
    found: dict[str, Any] = {
        "steps": len(steps),
        "plan": "" if plan is None else plan["message"],
        "shortages": sum(event["event"] == "plan" and "step" in event for event in events),
        "warnings": [event["message"] for event in events if event["event"] == "warning"],
        "blocks": None if plan is None else plan.get("plan", {}).get("compile"),
        "promised_gb": None if plan is None else round((plan["vram"] + plan.get("overhead", 0)) / GIB, 3),
    }
    seconds = [event["seconds"] for event in steps if "seconds" in event]
    if len(seconds) > 1:
        found["step_s"] = round(statistics.median(seconds[-(len(seconds) // 2) :]), 5)
    for name in ("reserved", "allocated"):
        peaks = [event[f"{name}_gib"] for event in steps if f"{name}_gib" in event]
        found[f"{name}_gb"] = round(max(peaks), 3) if peaks else None
    if plan is not None and found["reserved_gb"]:  # a promise is of the whole process
        found["taken_gb"] = round(found["reserved_gb"] + plan.get("overhead", 0) / GIB, 3)
        found["off"] = round(found["taken_gb"] / found["promised_gb"] - 1, 4)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the farthest from its promise first, then what failed."""
    known = sorted((row for row in rows if row.get("off") is not None), key=lambda row: -abs(row["off"]))
    lines = ["| method | clip | precision | promised, GB | taken, GB | off |", "|---|---|---|---:|---:|---:|"]
    lines += [
        f"| {row['method']} | {row['clip']} | {row['precision']} | {row['promised_gb']:.2f} | {row['taken_gb']:.2f} "
        f"| {row['off']:+.1%} |"
        for row in known
    ]
    beyond = [row for row in known if abs(row["off"]) > LIMIT]
    lines.append(f"\n{len(known)} runs, {len(beyond)} of them off by more than {LIMIT:.0%}.")
    lines += [
        f"Failed: {row['method']}, {row['clip']}, {row['precision']}: {row['error']}" for row in rows if "error" in row
    ]
    return "\n".join(lines)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of this file alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--clips", nargs="+", type=Clip.parse, default=[Clip(960, 960, 1), Clip(512, 512, 1)])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bf16"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--fixed-segments", action="store_true", help="of the allocator, as on Windows")
    parser.add_argument("--small", action="store_true", help="a dry run with a toy model")
    parser.add_argument("--total", type=float, default=0, help="seconds after which no further run is started; 0: none")
    parser.add_argument("--work", type=Path, help="folder for models, data and runs; default: in memory")
    options = parser.parse_args(arguments)
    if options.table is None and options.out is None:
        parser.error("--out says where the rows go, or --table which file is shown")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are not there, print the table."""
    options = read_options(arguments)
    if options.table is None:
        if options.fixed_segments:
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:False"
        speed.apart("methods", make, options, limit=math.inf)
    report = json.loads((options.table or options.out).read_text(encoding="utf-8"))
    print(table(report["rows"]))


def make(options: argparse.Namespace) -> None:
    """A row for each method, clip and precision that has none."""
    begun = time.monotonic()
    work = speed.work_folder(options.work) / "method-memory"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, "toy" if options.small else "wide", options.steps)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"device": speed.device_name(), "versions": speed.versions(), "rows": []}
    if options.out.exists():
        report = json.loads(options.out.read_text(encoding="utf-8"))
    done = {tuple(row[n] for n in ("method", "clip", "precision")) for row in report["rows"] if "error" not in row}
    left = [
        (method, clip, precision)
        for precision in options.precisions
        for clip in options.clips
        for method in options.methods
        if (method, str(clip), precision) not in done
    ]
    for method, clip, precision in left:
        if options.total and time.monotonic() - begun > options.total:
            print(f"no time is left for {method}, {clip}, {precision} and those behind it", flush=True)
            break
        row = bench.row(method, clip, precision, device)
        same = {name: row[name] for name in ("method", "clip", "precision")}
        report["rows"] = [old for old in report["rows"] if not same.items() <= old.items()] + [row]
        print(json.dumps(row), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

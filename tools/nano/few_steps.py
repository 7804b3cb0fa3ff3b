"""How a LoRA is best taught for a few-step model: python -m tools.nano few_steps --out nano/curves/few_steps.csv --work FOLDER

Teaches concepts in several ways, and asks each LoRA on the base (16 steps, with guidance) and on the few-step pair that
`distil` made (4 steps, without). The ways: on the base; on the few-step pair; on the few-step pair with a training
adapter (few_steps_adapter.py) merged into it; on the few-step pair with contrastive guidance.

A row is written as it is there, and rows that are there are not made again. With --processes each concept and seed has a
process of its own.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ...core.errors import ConfigError
from ...core.sample.sampler import SampleOptions
from ...core.serial import digest, to_dict
from . import world
from .command import run_command
from .concepts import CONCEPTS, Concept
from .distil import FEW_STEPS, FewStepFiles
from .evaluate import SAMPLING, Family
from .exam import Answers, Exam, Score, answer, grade
from .family import STAGES, Files
from .few_steps_adapter import make_adapters
from .lessons import teach, train_here, with_lora
from .settings import Settings
from .side_by_side import alone_on
from .workshop import Workshop

COLUMNS = (
    "concept", "seed", "way", "model", "strength", "learnt", "leaked", "kept", "kept_base", "motion", "motion_base",
    "seconds", "key",
)  # fmt: skip
WAYS = ("base", "few-step", "training adapter", "contrastive")
GUIDANCE = SAMPLING.cfg  # of the contrastive way: what the pair was distilled with
STRONGER = 1.5  # a LoRA of the base is also asked on the few-step pair at this strength


def taught_settings(seed: int, steps: int) -> Settings:
    """Those of the demo's dataset."""
    usual = Settings()
    return replace(usual, clips=16, others=8, loop=replace(usual.loop, steps=steps, seed=seed))


@dataclass(frozen=True)
class Model:
    """One of the two that a LoRA is asked on."""

    name: str
    family: Family
    sampling: SampleOptions


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the ways are compared."""

    base: Workshop
    few: Workshop
    adapters: dict[str, Path]  # the training adapter of each expert
    num_prompts: int
    steps: int

    def lesson(self, concept: Concept, way: str, seed: int) -> tuple[dict[str, Path], float]:
        """The LoRAs of both experts, and the seconds of their training."""
        settings = taught_settings(seed, self.steps)
        if way == "contrastive":
            settings = replace(settings, loss=replace(settings.loss, contrastive_guidance=GUIDANCE))
        workshop = self.base if way == "base" else self.few
        if way == "training adapter":  # each expert has its own
            merged = {stage: replace(settings.adapter, merge_into_base=str(self.adapters[stage])) for stage in STAGES}
            parts = [replace(settings, stages=(stage,), adapter=merged[stage]) for stage in STAGES]
        else:
            parts = [settings]
        lessons = {
            stage: lesson for part in parts for stage, lesson in teach(concept, part, workshop, train_here).items()
        }
        return {stage: lesson.lora for stage, lesson in lessons.items()}, sum(each.seconds for each in lessons.values())

    def key(self, concept: Concept, way: str, seed: int) -> str:
        """Digest of what decides the rows of a lesson."""
        adapters = [path.parent.name for path in self.adapters.values()] if way == "training adapter" else []
        own = [way, GUIDANCE, STRONGER, self.num_prompts, adapters]
        sampling = [to_dict(SAMPLING), to_dict(FEW_STEPS)]
        files = [self.base.identities(), self.few.identities()]
        return digest([to_dict(concept), to_dict(taught_settings(seed, self.steps)), own, sampling, files])


def motion(clips: np.ndarray) -> float:
    """Mean change from frame to frame, grey levels; clips [N, F, H, W, 3] uint8."""
    return float(np.abs(np.diff(clips.astype(np.int16), axis=1)).mean())


def row_of(score: Score, on: Answers, off: Answers, drawn: float) -> dict[str, str]:
    """The measured columns; motion as a share of that in drawn clips of the same scenes."""
    values = {name: getattr(score, name) for name in ("learnt", "leaked", "kept", "kept_base")}
    values |= {"motion": motion(on.clips) / drawn, "motion_base": motion(off.clips) / drawn}
    return {name: f"{value:.4g}" for name, value in values.items()}


def compare(bench: Bench, concepts: Sequence[Concept], seeds: Sequence[int], out: Path, stop: float) -> None:
    """Teach and ask; no training begins `stop` seconds after the start."""
    end = time.perf_counter() + stop
    models = [
        Model("base", Family.load(bench.base.files, bench.base.device), SAMPLING),
        Model("few-step", Family.load(bench.few.files, bench.few.device), FEW_STEPS),
    ]
    done = {(row["concept"], row["seed"], row["way"], row["key"]) for row in read_rows(out)}
    for concept in concepts:
        exam = Exam.of(concept, bench.num_prompts)
        drawn = motion(np.stack([world.draw(scene) for scene, _ in exam.triggered]))
        off = {model.name: answer(model.family, exam, model.sampling) for model in models}
        for seed in seeds:
            for way in WAYS:
                key = bench.key(concept, way, seed)
                if (concept.name, str(seed), way, key) in done or time.perf_counter() > end:
                    continue
                loras, seconds = bench.lesson(concept, way, seed)
                rows = []
                for model, strength in asked(models, way):
                    on = answer(with_lora(model.family, loras["high"], loras["low"], strength), exam, model.sampling)
                    score = grade(exam, off=off[model.name], on=on)
                    told = {"concept": concept.name, "seed": str(seed), "way": way, "model": model.name}
                    told |= {"strength": f"{strength:g}", "seconds": f"{seconds:.1f}", "key": key}
                    rows.append(told | row_of(score, on, off[model.name], drawn))
                    print(*(rows[-1][name] for name in COLUMNS[:-1]), flush=True)
                add_rows(out, rows)


def asked(models: Sequence[Model], way: str) -> Iterator[tuple[Model, float]]:
    """On which models a LoRA is asked, and at which strengths."""
    for model in models:
        yield model, 1.0
        if way == "base" and model.name == "few-step":
            yield model, STRONGER


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} has other columns than this version writes: choose another file for --out.")
        return list(reader)


def add_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Append; they are in the file when this returns."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows([row[name] for name in COLUMNS] for row in rows)


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: a line for each way, model and strength, means over concepts and seeds, and the spread of the seeds."""
    lines = ["| taught | asked on | strength | concept | the rest as asked | motion |", "|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["model"], row["strength"]), []).append(row)
    for (way, model, strength), own in groups.items():
        shares = [np.mean([float(row[name]) for row in own]) for name in ("learnt", "kept", "motion")]
        least, most = (100 * each([float(row["learnt"]) for row in own]) for each in (min, max))
        learnt = f"{shares[0]:.0%} ({least:.0f} to {most:.0f})"
        lines.append(f"| {way} | {model} | {strength} | {learnt} | {shares[1]:.0%} | {shares[2]:.0%} |")
    return "\n".join(lines)


# The command -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Make the rows, print the table."""
    parser = argparse.ArgumentParser(
        prog="tools.nano few_steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the table, csv")
    parser.add_argument("--work", type=Path, help="folder for data, caches and runs; none: print the table alone")
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument(
        "--concepts", nargs="+", choices=CONCEPTS, default=["dive", "barred", "star"], metavar="CONCEPT"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument(
        "--adapters", nargs=2, type=Path, metavar="LORA", help="training adapters, high and low, made before"
    )
    parser.add_argument("--devices", nargs="+", default=["cuda" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--processes", type=int, default=0, help="side by side; 0: all in this one")
    parser.add_argument("--stop", type=float, default=1e9, help="seconds after which no training begins")
    options = parser.parse_args(arguments)
    run_command(lambda: _few_steps(options))


def _few_steps(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    if options.work:
        base = Workshop(files=Files(options.family), folder=options.work, device=options.devices[0])
        few = replace(base, files=FewStepFiles(options.family))
        adapters: dict[str, Path] = dict(zip(STAGES, options.adapters or (), strict=False)) or make_adapters(few)
        print(f"training adapter: {time.perf_counter() - start:.0f} s", flush=True)
        stop = options.stop - (time.perf_counter() - start)
        if options.processes:
            _side_by_side(options, adapters, stop)
        else:
            bench = Bench(base=base, few=few, adapters=adapters, num_prompts=options.prompts, steps=options.steps)
            concepts = [CONCEPTS[name] for name in options.concepts]
            compare(bench, concepts, options.seeds, options.out, stop)
    print(table(read_rows(options.out)))


def _side_by_side(options: argparse.Namespace, adapters: dict[str, Path], stop: float) -> None:
    """A process for each concept and seed, so many at a time; their rows go into one file, in order."""
    parts = [(name, seed) for seed in options.seeds for name in options.concepts]
    numbers = count()
    known = read_rows(options.out)
    started = time.perf_counter()

    def one(part: tuple[str, int]) -> list[dict[str, str]]:
        name, seed = part
        own = options.work / f"rows-{name}-{seed}.csv"
        if not own.exists():
            add_rows(own, [row for row in known if (row["concept"], row["seed"]) == (name, str(seed))])
        command = [sys.executable, "-m", "tools.nano", "few_steps", "--out", str(own), "--work", str(options.work)]
        command += ["--family", str(options.family), "--concepts", name, "--seeds", str(seed)]
        command += ["--steps", str(options.steps), "--prompts", str(options.prompts)]
        command += ["--adapters", *(str(adapters[stage]) for stage in STAGES)]
        device, seen = alone_on(options.devices[next(numbers) % len(options.devices)], os.environ)
        command += ["--devices", device]
        command += ["--stop", f"{max(0.0, stop - (time.perf_counter() - started)):.0f}"]
        with (options.work / f"log-{name}-{seed}.txt").open("w", encoding="utf-8") as log:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **seen},
                check=False,
            ).returncode
        print(f"{name}, seed {seed}: {'done' if code == 0 else f'failed, see {log.name}'}", flush=True)
        return read_rows(own)

    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(one, parts))
    options.out.unlink(missing_ok=True)
    add_rows(options.out, [row for rows in found for row in rows])

"""How a LoRA is best taught for a few-step model: python -m tools.nano few_steps --out nano/curves/few_steps.csv --work FOLDER

Teaches concepts in several ways, and asks each LoRA on the base (16 steps, with guidance) and on the few-step pair that
`distil` made (4 steps, without). The ways: on the base; on the few-step pair; on the few-step pair with a training
adapter (few_steps_adapter.py) merged into it; on the few-step pair with contrastive guidance.

Rows are written as a lesson ends. Lessons that have their rows are not given again, so that a command that was stopped goes
on where it was; rows of other settings or files give way to new ones. With --processes each concept and seed that lacks a
lesson has a process of its own.
"""

import argparse
import csv
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path

import numpy as np
import torch

from ...core.disk import write_atomic
from ...core.errors import ConfigError
from ...core.sample.sampler import SampleOptions
from ...core.serial import digest, to_dict
from ...core.train.run_folder import RunFolder
from . import world
from .command import run_command
from .concepts import CONCEPTS, Concept
from .distil import FEW_STEPS, FewStepFiles
from .evaluate import SAMPLING, Family, decisive
from .exam import Answers, Exam, Score, answer, grade
from .failure import why_failed
from .family import STAGES, Files
from .few_steps_adapter import make_adapters
from .lessons import teach, train_here, with_lora
from .paired import paired
from .settings import Settings, differing
from .side_by_side import ONE_THREAD, PACK, alone_on
from .workshop import Workshop

COLUMNS = (
    "concept", "seed", "way", "model", "strength", "learnt", "leaked", "kept", "kept_base", "motion", "motion_base",
    "seconds", "key",
)  # fmt: skip
Row = dict[str, str]
Part = tuple[Concept, int, str]  # a lesson: the concept, the seed, the way
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
        adapters = [_maker_of(path) for path in self.adapters.values()] if way == "training adapter" else []
        own = [way, GUIDANCE, STRONGER, self.num_prompts, adapters]
        sampling = [decisive(SAMPLING), decisive(FEW_STEPS)]
        return digest([to_dict(concept), differing(taught_settings(seed, self.steps)), own, sampling, self._files])

    def missing(self, concepts: Sequence[Concept], seeds: Sequence[int], rows: Sequence[Row]) -> list[Part]:
        """The lessons that have no rows yet, seed by seed."""
        done = {(row["concept"], row["seed"], row["way"], row["key"]) for row in rows}
        return [
            (concept, seed, way)
            for seed, concept, way in product(seeds, concepts, WAYS)
            if (concept.name, str(seed), way, self.key(concept, way, seed)) not in done
        ]

    @cached_property
    def _files(self) -> list[list[str]]:
        return [self.base.identities(), self.few.identities()]


def _maker_of(adapter: Path) -> list[str | int]:
    """What a training adapter was made by: ours anew is as good as the old one, though a GPU rounds it otherwise."""
    folder = RunFolder(adapter.parent)
    if not folder.job_path.exists():
        return [hashlib.sha256(adapter.read_bytes()).hexdigest()[:16]]
    job = folder.read_job()
    return [job.name, job.stage, job.loop.steps, len(job.data.samples)]


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
    missing = bench.missing(concepts, seeds, read_rows(out))
    for concept in dict.fromkeys(concept for concept, _, _ in missing):
        exam = Exam.of(concept, bench.num_prompts)
        drawn = motion(np.stack([world.draw(scene) for scene, _ in exam.triggered]))
        off = {model.name: answer(model.family, exam, model.sampling) for model in models}
        for seed, way in [(seed, way) for own, seed, way in missing if own == concept]:
            if time.perf_counter() > end:
                return
            key = bench.key(concept, way, seed)
            loras, seconds = bench.lesson(concept, way, seed)
            rows = []
            for model, strength in asked(models, way):
                on = answer(with_lora(model.family, loras["high"], loras["low"], strength), exam, model.sampling)
                score = grade(exam, off=off[model.name], on=on)
                told = {"concept": concept.name, "seed": str(seed), "way": way, "model": model.name}
                told |= {"strength": f"{strength:g}", "seconds": f"{seconds:.1f}", "key": key}
                rows.append(told | row_of(score, on, off[model.name], drawn))
                print(*(rows[-1][name] for name in COLUMNS[:-1]), flush=True)
            put_rows(out, rows)


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


def put_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows of whole lessons in the place of those that the lessons had; they are in the file when this returns."""
    made = {_lesson_of(row) for row in rows}
    kept = [row for row in read_rows(path) if _lesson_of(row) not in made]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def _lesson_of(row: Row) -> tuple[str, str, str]:
    return row["concept"], row["seed"], row["way"]


def table(rows: Sequence[Row]) -> str:
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
    return "\n".join([*lines, *_beside(groups)])


def _beside(groups: Mapping[tuple[str, str, str], Sequence[Row]]) -> list[str]:
    """Markdown: what each way shows on the few-step pair more or less than a LoRA of the base, lesson by lesson."""
    here = {(way, strength): own for (way, model, strength), own in groups.items() if model == "few-step"}
    usual = here.pop(("base", "1"), [])
    lines: list[str] = []
    for (way, strength), own in here.items():
        found = [paired(_by_lesson(own, name), _by_lesson(usual, name)) for name in ("learnt", "kept", "motion")]
        if found[0] is not None:
            lines.append(f"| {way} | {strength} | {' | '.join(map(str, found))} | {found[0].count} |")
    head = (
        "| on the few-step pair, beside base at strength 1 | strength | concept | the rest as asked | motion | pairs |"
    )
    return ["", head, "|---|---|---|---|---|---|", *lines] if lines else []


def _by_lesson(rows: Sequence[Row], name: str) -> dict[Hashable, float]:
    return {(row["concept"], row["seed"]): float(row[name]) for row in rows}


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
        options.family, options.work = options.family.absolute(), options.work.absolute()  # of other processes, too
        base = Workshop(files=Files(options.family), folder=options.work, device=options.devices[0])
        few = replace(base, files=FewStepFiles(options.family))
        adapters: dict[str, Path] = dict(zip(STAGES, options.adapters or (), strict=False)) or make_adapters(few)
        print(f"training adapter: {time.perf_counter() - start:.0f} s", flush=True)
        stop = options.stop - (time.perf_counter() - start)
        bench = Bench(base=base, few=few, adapters=adapters, num_prompts=options.prompts, steps=options.steps)
        concepts = [CONCEPTS[name] for name in options.concepts]
        if options.processes:
            _side_by_side(options, bench, concepts, stop)
        else:
            compare(bench, concepts, options.seeds, options.out, stop)
    print(table(read_rows(options.out)))


def _side_by_side(options: argparse.Namespace, bench: Bench, concepts: Sequence[Concept], stop: float) -> None:
    """A process for each concept and seed that lacks a lesson, so many at a time; the rows of each go into the one file."""
    numbers, one_at_a_time, started = count(), threading.Lock(), time.perf_counter()

    def rows_file(concept: Concept, seed: int) -> Path:
        return options.work / f"rows-{concept.name}-{seed}.csv"

    def take(concept: Concept, seed: int) -> None:
        """What its process has made, also one that was broken off."""
        with one_at_a_time:
            wanted = {(way, bench.key(concept, way, seed)) for _, _, way in bench.missing(
                [concept], [seed], read_rows(options.out)
            )}  # fmt: skip
            found = [row for row in read_rows(rows_file(concept, seed)) if (row["way"], row["key"]) in wanted]
            if found:
                put_rows(options.out, found)

    for seed, concept in product(options.seeds, concepts):
        take(concept, seed)
    missing = bench.missing(concepts, options.seeds, read_rows(options.out))
    parts = list(dict.fromkeys((concept, seed) for concept, seed, _ in missing))
    print(f"{len(missing)} lessons are to be given, in {len(parts)} processes.", flush=True)

    def one(part: tuple[Concept, int]) -> None:
        concept, seed = part
        own = rows_file(concept, seed)
        known = [row for row in read_rows(options.out) if _lesson_of(row)[:2] == (concept.name, str(seed))]
        put_rows(own, known)
        command = [sys.executable, "-m", "tools.nano", "few_steps", "--out", str(own), "--work", str(options.work)]
        command += ["--family", str(options.family), "--concepts", concept.name, "--seeds", str(seed)]
        command += ["--steps", str(options.steps), "--prompts", str(options.prompts)]
        command += ["--adapters", *(str(bench.adapters[stage]) for stage in STAGES)]
        device, seen = alone_on(options.devices[next(numbers) % len(options.devices)], os.environ)
        command += ["--devices", device]
        command += ["--stop", f"{max(0.0, stop - (time.perf_counter() - started)):.0f}"]
        log = options.work / f"log-{concept.name}-{seed}.txt"
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=PACK,
                env={**os.environ, **ONE_THREAD, **seen},
                check=False,
            ).returncode
        take(concept, seed)
        print(f"{concept.name}, seed {seed}: {'done' if code == 0 else f'failed: {why_failed(code, log)}'}", flush=True)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(one, parts))

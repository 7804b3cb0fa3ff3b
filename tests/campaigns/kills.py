"""SIGKILL in every phase of caching and training: started again, the result is the same to the bit.

Each try kills one process, at a random instant, before a file operation, or in the middle of a write, and starts it again
to its end. Of a training the LoRA, the losses and the validation losses have to be those of one that was never stopped, and
no checkpoint that was written may be lost; of a cache every tensor. No temporary file may be left. A third of the
trainings begins with the copy of another run's checkpoint, and that run's folder must stay as it is.

Captions are the one exception: they are encoded several at once, and those that were absent after a kill have other
companions then, by which the products round otherwise. They have to agree within ROUNDING.
"""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from wan_train.core.settings.job import Job, job_from_json, job_to_json
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.find_run import find_run
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.campaigns.campaign import Campaign, Report
from wan_train.tests.core.launch.forks import Forks, forks
from wan_train.tests.core.launch.material import draw_pictures, recipe_over, write_models

STEPS = 3
CHILD = "wan_train.tests.campaigns.killed"
# phase: how often it comes in a run
CACHING = {"scanning": 1, "caching latents": 1, "caching text": 1}
TRAINING = {
    "claiming": 1,
    "loading the model": 1,
    "first step": 1,
    "steps": STEPS,
    "checkpoint": 2,
    "validation": 2,  # before the first step, too
    "preview": 1,
    "LoRA": 1,
    "result": 1,
}
MODES = ("instant", "operation", "half")
MOST = {"instant": 12, "operation": 8, "half": 4}  # milliseconds, operations, writes after the phase has begun
ANYWHERE_MS = 250
CACHING_SHARE = 0.15
ROUNDING = 1e-5  # of embeddings, whose values are about 1
CHANCES = 5  # plans for one try: some runs end before their plan comes true


@dataclass(frozen=True)
class Reference:
    """What was never stopped."""

    work: Path
    tables: dict[str, Any]
    job: Job
    folder: RunFolder
    board: Path

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The LoRA's."""
        lora = self.folder.finished_lora(STEPS)
        assert lora is not None
        return load_file(lora)


def attack(tries: int, seed: int, place: Path) -> Report:
    """`tries` kills."""
    report = Report()
    if os.name == "nt":
        report.tries = tries
        report.facts["not run"] = "forks and SIGKILL need POSIX"
        return report
    rng = random.Random(seed)
    hits: Counter[str] = Counter()
    with forks(place) as children:
        reference = _reference(children, place)
        while report.tries < tries:
            number = report.tries + 1
            work = place / f"try-{number}"
            is_cache = rng.random() < CACHING_SHARE
            attempt = _Caching(reference, work) if is_cache else _Training(reference, work, rng.random() < 1 / 3)
            phase = _kill(children, attempt, rng)
            if phase is None:
                report.check(False, f"kill {number}: none of {CHANCES} plans came true")
                report.tries += 1
                continue
            hits[phase] += 1
            failed = [f"kill {number}, {attempt.plan}, in {phase}: {found}" for found in attempt.finish(children)]
            if failed:  # kept, with what it made, for whoever looks into it
                report.failures += failed
                (work / "failures.txt").write_text("\n".join(failed), encoding="utf-8")
            else:
                shutil.rmtree(work)
            report.tries += 1
    for phase, count in sorted(hits.items()):
        report.facts[f"killed in {phase}"] = count
    return report


def _reference(children: Forks, place: Path) -> Reference:
    """Cache and train, never stopped."""
    work, board = place / "reference", place / "board"
    board.write_bytes(bytes(64))
    tables = recipe_over(write_models(place / "models", num_layers=1), draw_pictures(place / "pictures"))
    tables |= {
        "work": str(work),
        "loop": {"steps": STEPS, "checkpoint_every": 2, "keep_last": 2, "validate_every": STEPS},
    }
    tables["dataset"] |= {"held_out": 1}
    work.mkdir()
    _run(children, "cache", tables=tables, plan={}, board=str(board))
    job = job_from_json((work / "low.json").read_text(encoding="utf-8"))
    job = replace(job, name="killed", previews=PreviewOptions(every=STEPS, steps=2, cfg=1.0, shift=5.0), device="cpu")
    job = replace(job, adapter=replace(job.adapter, dropout=0.1), loop=replace(job.loop, caption_dropout=0.2))
    runs = work / "runs"
    _run(children, "train", runs=str(runs), job=job_to_json(job), plan={}, board=str(board))
    return Reference(work, tables, job, find_run(runs, job), board)


def _run(children: Forks, function: str, **arguments: Any) -> None:
    children.call(CHILD, function, **arguments)
    code = children.wait()
    assert code == 0, f"{function} without a kill ended with {code}: see printed.log"


def _kill(children: Forks, attempt: "_Caching | _Training", rng: random.Random) -> str | None:
    """Start it with plans until one comes true; the phase it died in, or None."""
    for _ in range(CHANCES):
        attempt.prepare()
        attempt.plan = _plan(attempt.phases, rng)
        if attempt.start(children) == -signal.SIGKILL:
            return attempt.reference.board.read_bytes().rstrip(b"\0").decode()
    return None


def _plan(phases: dict[str, int], rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.1:
        return {"phase": "anywhere", "mode": "instant", "amount": rng.randint(0, ANYWHERE_MS)}
    phase, mode = rng.choice(list(phases)), rng.choice(MODES)
    return {
        "phase": phase,
        "occurrence": rng.randint(1, phases[phase]),
        "mode": mode,
        "amount": rng.randint(0, MOST[mode]),
    }


class _Caching:
    """Caching a dataset, from an empty folder."""

    phases = CACHING

    def __init__(self, reference: Reference, work: Path):
        self.reference, self._work = reference, work
        self.plan: dict[str, Any] = {}

    def prepare(self) -> None:
        """An empty folder."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()

    def start(self, children: Forks) -> int:
        """Cache, by the plan; the exit code."""
        tables = {**self.reference.tables, "work": str(self._work)}
        children.call(CHILD, "cache", tables=tables, plan=self.plan, board=str(self.reference.board))
        return children.wait()

    def finish(self, children: Forks) -> Iterator[str]:
        """Start it again, to its end; what does not hold."""
        kept, self.plan = self.plan, {}
        code = self.start(children)
        self.plan = kept
        if code:
            yield f"started again it ended with {code}"
            return
        theirs, ours = self.reference.work / "cache", self._work / "cache"
        files = [path.relative_to(theirs) for path in theirs.rglob("*.safetensors")]
        if sorted(files) != sorted(path.relative_to(ours) for path in ours.rglob("*.safetensors")):
            yield "the cache holds other files"
            return
        for file in files:
            if not _same(ours / file, theirs / file, ROUNDING if file.parts[0] == "text" else 0.0):
                yield f"{file} has other tensors"
        yield from _leftovers(self._work)


class _Training:
    """Training a job on the reference's cache: in a folder without runs, or beside the reference's run, renamed."""

    def __init__(self, reference: Reference, work: Path, is_renamed: bool):
        self.reference, self._runs, self._is_renamed = reference, work / "runs", is_renamed
        self.phases = dict.fromkeys(TRAINING, 1) if is_renamed else TRAINING
        self._job = replace(reference.job, name="renamed") if is_renamed else reference.job
        self.plan: dict[str, Any] = {}

    @property
    def _first(self) -> Path:
        return self._runs / self.reference.folder.path.name

    def prepare(self) -> None:
        """A folder without runs, or with the reference's, of which the older checkpoint is left."""
        shutil.rmtree(self._runs.parent, ignore_errors=True)
        self._runs.mkdir(parents=True)
        (self._runs.parent / "cache").symlink_to(self.reference.work / "cache")
        if self._is_renamed:
            shutil.copytree(self.reference.folder.path, self._first)
            shutil.rmtree(self._first / "checkpoints" / f"step-{STEPS:08d}")

    def start(self, children: Forks) -> int:
        """Train, by the plan; the exit code."""
        arguments = {"runs": str(self._runs), "job": job_to_json(self._job), "board": str(self.reference.board)}
        children.call(CHILD, "train", plan=self.plan, **arguments)
        return children.wait()

    def finish(self, children: Forks) -> Iterator[str]:
        """Start it again, to its end; what does not hold."""
        folder = find_run(self._runs, self._job)
        kept_step = max((step for step, _ in folder.checkpoints()), default=0)
        plan, self.plan = self.plan, {}
        code = self.start(children)
        self.plan = plan
        if code:
            yield f"started again it ended with {code}"
            return
        lora = find_run(self._runs, self._job).finished_lora(STEPS)
        if lora is None or find_run(self._runs, self._job) != folder:
            yield f"there is no LoRA in {folder.path}"
            return
        ours, theirs = load_file(lora), self.reference.tensors
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            yield "the LoRA is another"
        yield from self._diary(folder, kept_step)
        yield from _leftovers(self._runs)
        if self._is_renamed:
            yield from self._untouched()

    def _diary(self, folder: RunFolder, kept_step: int) -> Iterator[str]:
        ours, theirs = read_history(folder.events_path), read_history(self.reference.folder.events_path)
        if ours.losses != theirs.losses:
            yield "the losses are others"
        if ours.validation != theirs.validation:
            yield "the validation losses are others"
        starts = [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == "start"]
        if starts[-1] < kept_step:
            yield f"it went on from step {starts[-1]}, though a checkpoint of {kept_step} was there"
        told = [event["step"] for event in EventReader(folder.events_path).read() if event["event"] == "checkpoint"]
        if starts[-1] == 0 and self._is_renamed:
            yield "it began at 0, though another run had a checkpoint"
        if STEPS not in (*told, *starts):
            yield "the last checkpoint is not in the diary"

    def _untouched(self) -> Iterator[str]:
        theirs = self.reference.folder.path
        for path in theirs.rglob("*"):
            ours = self._first / path.relative_to(theirs)
            if path.is_file() and ours.exists() and ours.read_bytes() != path.read_bytes():
                yield f"{ours} of the other run was changed"
        extra = [path for path in self._first.rglob("*") if not (theirs / path.relative_to(self._first)).exists()]
        if extra:
            yield f"{extra[0]} came into the other run"


def _same(ours: Path, theirs: Path, tolerance: float) -> bool:
    a, b = load_file(ours), load_file(theirs)
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return False
    return all(torch.allclose(a[name], b[name], rtol=0.0, atol=tolerance) for name in a)


def _leftovers(folder: Path) -> Iterator[str]:
    left = [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".json")]
    if left:
        yield f"{left[0]} was left behind, with {len(left) - 1} more"


CAMPAIGN = Campaign(attack=attack, short=5, long=1000)

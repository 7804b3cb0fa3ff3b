"""Damaged files: flipped bits, cuts, blocks of zeros and swapped files, in all that a run reads again.

A run that was stopped at step 3 of 4, or one that is finished, has one of its files damaged, and is queued again. It must
give exactly the LoRA of a run that nothing happened to, or end with a sentence that names the file. Every number that the
diary then tells must be the right one.
"""

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from wan_train.core.errors import WanTrainError
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.campaigns import tiny
from wan_train.tests.campaigns.campaign import Campaign, Report

FLIPS = 8  # of ten tries are a flipped bit


@dataclass(frozen=True)
class Scene:
    """What every try begins from, and what it must come to."""

    place: Path  # where a try's copy lies, always the same, as jobs name their files
    stopped: Path
    finished: Path
    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    workflow: dict

    def restore(self, template: Path) -> RunFolder:
        """A fresh copy."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(template, self.place)
        return RunFolder(self.place / "runs" / "run")


def attack(tries: int, seed: int, place: Path) -> Report:
    """Each try damages one file."""
    scene, rng = _prepare(place), random.Random(seed)
    report, outcomes = Report(), Counter()
    for number in range(tries):
        folder = scene.restore(rng.choice((scene.stopped, scene.stopped, scene.finished)))
        file = rng.choice(_targets(scene.place))
        damage = _flip if rng.randrange(10) < FLIPS else rng.choice((_cut, _zero, _swap))
        touched = [file]
        done = damage(file, rng, touched)
        what = f"try {number}: {file.relative_to(scene.place)} {done}"
        outcomes[_queue_again(scene, folder, touched, what, report)] += 1
        report.tries += 1
        outcomes["flipped bits"] += damage is _flip
    report.facts.update(sorted(outcomes.items()))
    return report


def _prepare(place: Path) -> Scene:
    work = place / "work"
    cache = work / "cache"
    model = tiny.write_model(place / "model.safetensors")
    tiny.save_texts(tiny.Store(cache))
    tiny.save_latents(tiny.Store(cache))
    folder = RunFolder(work / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(tiny.make_job(model, cache))
    workflow = {"nodes": [{"id": number, "type": "TrainLoRAStage"} for number in range(5)]}
    folder.write_workflow(workflow=workflow, prompt={"1": {"class_type": "TrainLoRAStage"}})
    assert tiny.train(folder, stop_at=3) is None
    shutil.copytree(work, place / "stopped")
    lora = tiny.train(folder)
    assert lora is not None
    shutil.copytree(work, place / "finished")
    losses = read_history(folder.events_path).losses
    return Scene(work, place / "stopped", place / "finished", tiny.weights_of(lora), losses, workflow)


def _targets(place: Path) -> list[Path]:
    """Every file that a run reads again; an equal chance for each kind."""
    run = place / "runs" / "run"
    kinds = ["checkpoints/*/adapter.safetensors", "checkpoints/*/state.pt", "checkpoints/*/manifest.json", "events.jsonl",
             "job.json", "workflow.json", "result.json", "*.safetensors"]  # fmt: skip
    found = [sorted(run.glob(kind)) for kind in kinds]
    found += [sorted((place / "cache").glob(f"{kind}/*/*.safetensors")) for kind in ("latents", "text")]
    found = [files for files in found if files]
    most = max(map(len, found))
    return [files[index % len(files)] for files in found for index in range(most)]


def _flip(file: Path, rng: random.Random, _touched: list[Path]) -> str:
    data = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"with bit {bit} flipped"


def _cut(file: Path, rng: random.Random, _touched: list[Path]) -> str:
    length = rng.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:length])
    return f"cut to {length} bytes"


def _zero(file: Path, rng: random.Random, _touched: list[Path]) -> str:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data)) // 64 * 64
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    file.write_bytes(data)
    return f"with zeros from {start}"


def _swap(file: Path, rng: random.Random, touched: list[Path]) -> str:
    parent = file.parents[1] if file.parent.name != "run" else file.parent
    others = [path for path in parent.rglob(f"*{file.suffix}") if path != file and path.is_file()]
    if not others:
        return _flip(file, rng, touched)
    other = rng.choice(others)
    touched.append(other)
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)
    return f"swapped with {other.parent.name}/{other.name}"


def _queue_again(scene: Scene, folder: RunFolder, touched: list[Path], what: str, report: Report) -> str:
    """What the node and the command line do, without a process of its own."""
    try:
        job = folder.read_job()
        lora = folder.finished_lora(job.loop.steps) or tiny.train(folder)
    except WanTrainError as error:
        report.check(any(path.name in str(error) for path in touched), f"{what}: the error names no file: {error}")
        return "ended with a sentence"
    except Exception as error:
        report.failures.append(f"{what}: {type(error).__name__}: {error}")
        return "ended with another error"
    right = lora is not None and tiny.same_lora(lora, scene.weights)
    report.check(right, f"{what}: the LoRA is another")
    _check_told(scene, folder, what, report)
    return "gave the right LoRA"


def _check_told(scene: Scene, folder: RunFolder, what: str, report: Report) -> None:
    reader = EventReader(folder.events_path)
    for event in reader.read():
        if event["event"] == "step":
            right = scene.losses.get(event["step"]) == event["loss"]
            report.check(right, f"{what}: the diary tells the loss {event['loss']} at step {event['step']}")
    told = folder.read_workflow()["workflow"]
    report.check(told in (None, scene.workflow), f"{what}: another workflow is told")


CAMPAIGN = Campaign(attack=attack, short=15, long=2500)

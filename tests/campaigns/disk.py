"""Disks that refuse: full, over quota, broken or read-only, at every write of caching and of a run.

Caches are made and a run is trained on a disk that refuses at some moment, for one write or for good. Each must end as if
nothing had been, or with a sentence that names the place. Then there is room, and the same is done again: it must go on
from the newest checkpoint, give exactly the LoRA of an undisturbed run, and leave no temporary file.
"""

import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.data.types import Dataset
from wan_train.core.errors import WanTrainError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.campaigns import tiny
from wan_train.tests.campaigns.campaign import Campaign, Report
from wan_train.tests.campaigns.faulty_disk import REFUSALS, FaultyDisk, fill, mount, refusing, unmount
from wan_train.tools.shapes import draw_dataset

SIZE = 4 * 2**20  # bytes of a disk, more than all that is written
LEFT = {"caching": 16 * 2**10, "run": 200 * 2**10}  # bytes, of which a refusal leaves less: what is written then


@dataclass(frozen=True)
class Scene:
    """What every try begins from, and what it must come to."""

    model: Path
    dataset: Dataset
    cache: Path  # of the runs
    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    writes: dict[str, int]  # acts of writing of an undisturbed one


class Pooling:
    """A video encoder that takes means of blocks of pixels."""

    identity, latent_format = "pooling", "wan2.1"

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3] to [16, 1, H/8, W/8]."""
        means = torch.nn.functional.avg_pool2d(frames[:1].float().permute(0, 3, 1, 2), 8)[0].mean(0)
        return means.expand(16, 1, *means.shape).contiguous()


class Letters:
    """A text encoder that counts letters."""

    identity, dim = "letters", tiny.SIZE.text_dim

    def encode_batch(self, captions: list[str]) -> list[tuple[torch.Tensor, bool]]:
        """A row for each caption."""
        return [(torch.full((1, self.dim), float(len(caption))), False) for caption in captions]

    def encode(self, caption: str) -> tuple[torch.Tensor, bool]:
        """One of them."""
        return self.encode_batch([caption])[0]


def attack(tries: int, seed: int, place: Path) -> Report:
    """Each try has one refusal."""
    scene, rng, report, outcomes = _prepare(place), random.Random(seed), Report(), Counter()
    with tempfile.TemporaryDirectory(dir=place) as probe:
        can_mount = mount(Path(probe) / "disk", 2**20)
        if can_mount:
            unmount(Path(probe) / "disk")
    for number in range(tries):
        phase = "caching" if rng.randrange(4) == 0 else "run"
        work = place / f"try-{number}"
        if can_mount and rng.randrange(2):
            outcome = _try_real(scene, phase, work, rng, report)
        else:
            outcome = _try_called(scene, phase, work, rng, report)
        outcomes[f"{phase}, {outcome}"] += 1
        report.tries += 1
        shutil.rmtree(work, ignore_errors=True)
    report.facts.update({**sorted_counts(outcomes), "real full disks": "yes" if can_mount else "not permitted here"})
    return report


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    """By name."""
    return dict(sorted(counts.items()))


def _prepare(place: Path) -> Scene:
    model, cache = tiny.write_model(place / "model.safetensors"), place / "cache"
    tiny.save_texts(Store(cache))
    tiny.save_latents(Store(cache))
    draw_dataset(place / "pictures", clips=0, images=3, size=32, seed=0)
    dataset = scan_folder(place / "pictures", DatasetOptions(width=32, height=32, trigger_word="shp"))
    folder = RunFolder(place / "whole" / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(tiny.make_job(model, cache))
    lora = tiny.train(folder)
    assert lora is not None
    losses = read_history(folder.events_path).losses
    scene = Scene(model, dataset, cache, tiny.weights_of(lora), losses, {})
    for phase in LEFT:
        disk = FaultyDisk(place / "count", 0, 10**9, 0)
        with refusing(disk):
            _act(scene, phase, place / "count")()
        scene.writes[phase] = disk.count
    return scene


def _try_called(scene: Scene, phase: str, work: Path, rng: random.Random, report: Report) -> str:
    kind = rng.choice(sorted(REFUSALS))
    allowed, length = rng.randrange(scene.writes[phase]), rng.choice((1, 2, 10, 10**9))
    disk = FaultyDisk(work, REFUSALS[kind], allowed, length)
    what = f"{work.name}, {phase}: {kind} after {allowed} writes, {length} times"
    act = _act(scene, phase, work)
    with refusing(disk):
        outcome = _attempt(act, work, what, report)
    _again(scene, phase, work, act, what, report)
    return outcome if disk.refused else "nothing refused"


def _try_real(scene: Scene, phase: str, work: Path, rng: random.Random, report: Report) -> str:
    left, step = rng.randrange(0, LEFT[phase], 4096), rng.randrange(tiny.STEPS)
    what = f"{work.name}, {phase}: {left} bytes are left on a disk, from step {step} on"
    mount(work, SIZE)
    try:
        if phase == "caching":
            fill(work, left)
        outcome = _attempt(_act(scene, phase, work, lambda: fill(work, left), step), work, what, report)
        (work / "filler").unlink(missing_ok=True)
        _again(scene, phase, work, _act(scene, phase, work), what, report)
    finally:
        unmount(work)
    return f"{outcome}, really full"


def _act(
    scene: Scene, phase: str, work: Path, disturb: Callable[[], object] | None = None, step: int = 0
) -> Callable[[], Path | None]:
    """Caching, or the run, which is disturbed between two steps."""
    if phase == "caching":
        return lambda: _cache(scene, work / "cache")
    return lambda: _run(scene, RunFolder(work / "runs" / "run"), disturb, step)


def _cache(scene: Scene, root: Path) -> None:
    cache_latents(scene.dataset, Pooling(), Store(root))
    cache_text(scene.dataset.captions, Letters(), Store(root))


def _run(scene: Scene, folder: RunFolder, disturb: Callable[[], object] | None, step: int) -> Path:
    """As the worker does it: what went wrong goes into the diary."""
    waiting = [disturb] if disturb else []

    def should_stop() -> bool:
        if waiting and max(read_history(folder.events_path).losses, default=0) >= step:
            waiting.pop()()
        return False

    with contextlib.suppress(OSError):  # the parent, which the node has made
        folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(tiny.make_job(scene.model, scene.cache))
    events = EventWriter(folder.events_path)
    try:
        lora = run_job(folder, events, tiny.CPU, should_stop)
    except WanTrainError as error:
        events.write("error", message=str(error))
        raise
    events.write("finished", lora=lora.name)
    return lora


def _attempt(act: Callable[[], Path | None], work: Path, what: str, report: Report) -> str:
    try:
        act()
        return "done at once"
    except WanTrainError as error:
        report.check(str(work) in str(error), f"{what}: the sentence names no place: {error}")
        return "ended with a sentence"
    except Exception as error:
        report.failures.append(f"{what}: {type(error).__name__}: {error}")
        return "ended with another error"


def _again(scene: Scene, phase: str, work: Path, act: Callable[[], Path | None], what: str, report: Report) -> None:
    folder = RunFolder(work / "runs" / "run")
    newest = folder.checkpoints()[-1][0] if folder.checkpoints() else 0
    try:
        lora = act()
    except Exception as error:
        report.failures.append(f"{what}: with room again, {type(error).__name__}: {error}")
        return
    leftovers = [path.name for path in work.rglob("*.tmp")]
    report.check(not leftovers, f"{what}: {leftovers} are left")
    if phase == "caching":
        return
    report.check(lora is not None and tiny.same_lora(lora, scene.weights), f"{what}: the LoRA is another")
    reader = EventReader(folder.events_path)
    events = reader.read()
    starts = [event["step"] for event in events if event["event"] == "start"]
    report.check(starts[-1:] == [newest], f"{what}: it went on from {starts[-1:]} instead of {newest}")
    report.check(reader.damaged == 0, f"{what}: {reader.damaged} lines of the diary are damaged")
    told = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    report.check(told.items() <= scene.losses.items(), f"{what}: the diary tells other losses: {told}")


CAMPAIGN = Campaign(attack=attack, short=10, long=600)

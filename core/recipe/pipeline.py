"""From a recipe to LoRA files: scan, caches, a job for each stage, training, and the files under their names."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..adapters.merge import check_pair
from ..adapters.other_files import read_adapter
from ..adapters.ship import ShipOptions, Slot, Source, ship
from ..data.counting import describe_lengths
from ..data.encode import cache_latents, cache_text
from ..data.join import join
from ..data.pairs import data_spec
from ..data.report import describe_dataset, list_notes
from ..data.sample_prompts import read_prompts
from ..data.scan import scan_folder
from ..data.store import Store
from ..data.types import Dataset, LatentCache, Note, TextCache
from ..devices import AUTO, device_list, resolve_device
from ..disk import check_writable, write_atomic
from ..errors import RunError
from ..launch.ahead import PACK, run_beside
from ..launch.exits import EXIT_INTERRUPTED
from ..launch.follow import POLL_SECONDS
from ..launch.planned import Planned, describe_devices, describe_turns, places_of
from ..launch.progress import NoDisplay, ProgressDisplay
from ..locks import FileLock
from ..moving import remove, temporary_sibling
from ..plan.spread import run_seconds
from ..settings.job import Job, Stage
from ..sweep import sweep_temporaries
from ..train.build import PreviewModels, build_job, job_warnings, with_copies
from ..train.chosen import choose_lora
from ..train.find_run import find_run
from ..train.label import lora_name
from ..train.length import job_length
from ..train.other_expert import OTHER
from ..train.space import check_space_before
from ..train.spread import RunPlace, build_over
from ..train.start import check_names_fit, check_run_folder, check_start
from ..wan.checkpoint import CheckpointInfo, inspect
from .checks import check_models, check_paired
from .encoders import LazyTextEncoder, LazyVideoEncoder, LazyVisionEncoder, NotEncodedError, Turn
from .recipe import Recipe, recipe_tables


def check_recipe(recipe: Recipe) -> dict[Stage, CheckpointInfo]:
    """Refuse what can't work from the headers of the files alone; what each model to train is."""
    infos = check_models(recipe)
    for stage in infos:
        device_list(recipe.settings(stage).device)
    for folder in (recipe.cache_path, recipe.runs_path, recipe.lora_folder):
        check_writable(folder)
    return infos


def scan(recipe: Recipe, display: ProgressDisplay, *, report: bool = True) -> Dataset:
    """The recipe's datasets as one; says what was found, unless told not to."""
    check_writable(recipe.cache_path)
    progress = partial(display.update, "scan") if report else None
    found: list[Dataset] = []
    for source in recipe.datasets:
        index = recipe.cache_path / "files.json"
        found.append(scan_folder(Path(source.folder), source.options, index_path=index, progress=progress))
        display.end("scan")
    dataset = join(found)
    if report:
        display.say(describe_dataset(dataset, limit=None, lengths=()))
    return dataset


@dataclass(frozen=True)
class Cached:
    """The dataset as files on disk, and what happened on the way there."""

    latents: LatentCache
    text: TextCache
    notes: list[Note]


def cache(recipe: Recipe, dataset: Dataset, display: ProgressDisplay, *, load: bool = True) -> Cached:
    """Latents and text embeddings on disk. The encoders are loaded, one at a time, only if something is absent.

    Without `load` NotEncodedError is raised instead.
    """
    prompts = read_prompts(
        recipe.samples, dataset.trigger_words
    )  # refused before hours of encoding, and not after them
    store, index = Store(recipe.cache_path), recipe.cache_path / "encoders.json"
    sweep_temporaries(recipe.cache_path, recursive=True)
    wait = partial(_await_lock, display=display) if load else None
    turn = Turn(resolve_device(device_list(recipe.device)[0]), wait)  # of several, one encodes
    try:
        vae = LazyVideoEncoder(Path(recipe.models.vae), turn, index, display.say)
        clip_vision = Path(recipe.models.clip_vision) if recipe.models.clip_vision else None
        vision = LazyVisionEncoder(clip_vision, turn, index, display.say) if clip_vision else None
        latents, notes = cache_latents(
            dataset,
            vae,
            store,
            conditioning=recipe.conditioning,
            vision=vision,
            on_item=lambda done, total, name: display.update("latents", done, total, name),
        )
        vae.unload()
        if vision:
            vision.unload()
        display.end("latents")
        tokenizer = Path(recipe.models.tokenizer) if recipe.models.tokenizer else None
        umt5 = LazyTextEncoder(Path(recipe.models.text_encoder), turn, index, display.say, tokenizer)
        text, text_notes = cache_text(
            dataset.captions,
            umt5,
            store,
            prompts=prompts,
            on_item=lambda done, total, name: display.update("text", done, total, name),
        )
        umt5.unload()
        display.end("text")
    finally:
        turn.release()
    return Cached(latents, text, [*notes, *text_notes])


class _Looking(NoDisplay):
    """Shows how far the cache is looked through, which takes seconds where it holds thousands of samples."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display

    def update(self, name: str, done: int, total: int, text: str = "", /) -> None:
        """So much of the cache is looked through."""
        self._display.update(f"cached {name}", done, total, text)

    def end(self, name: str, /) -> None:
        """It is looked through."""
        self._display.end(f"cached {name}")


def cache_elsewhere(
    recipe: Recipe, dataset: Dataset, devices: Sequence[str], display: ProgressDisplay | None = None
) -> Cached:
    """As `cache`, but what is absent is encoded by a process of its own: its memory is free again before training."""
    if recipe.device == AUTO:
        recipe = replace(recipe, device=device_list(devices[0])[0])
    looking = NoDisplay() if display is None else _Looking(display)
    try:
        return cache(recipe, dataset, looking, load=False)
    except NotEncodedError:
        for name in ("latents", "text"):  # where it had begun to look
            looking.end(name)
        _run_cache_command(recipe)
    return cache(recipe, dataset, looking, load=False)


def _run_cache_command(recipe: Recipe) -> None:
    file = temporary_sibling(recipe.cache_path / "recipe").with_suffix(".json")
    write_atomic(file, lambda stream: stream.write(json.dumps(recipe_tables(recipe)).encode()))
    flags = ["-s"] if sys.flags.no_user_site else []  # find packages where this process finds them
    command = [sys.executable, *flags, str(PACK / "wantrain.py"), "cache", str(file), "--no-report"]
    try:
        code = run_beside(command)
    finally:
        with suppress(OSError):
            remove(file)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RunError(f"encoding ended early (code {code}), for the reason above; what is done is kept.")


def jobs(
    recipe: Recipe,
    infos: dict[Stage, CheckpointInfo],
    cached: Cached,
    places: Mapping[Stage, RunPlace] | None = None,
    tell: Callable[[str], object] | None = None,
) -> dict[Stage, Job]:
    """A job for each stage: what the graph makes of equal settings, with equal keys.

    `places`: the GPUs that train each stage together; by default those that its device names. `tell`: see `build_over`.
    """
    places = places or {stage: _place(recipe, recipe.settings(stage).device, [AUTO]) for stage in infos}
    data, trigger = data_spec(cached.latents, cached.text), cached.latents.trigger_word
    adapter = Path(recipe.models.recovery_adapter) if recipe.models.recovery_adapter else None
    made: dict[Stage, Job] = {}
    for stage, info in infos.items():
        build = partial(
            build_job,
            info,
            data,
            name=recipe.name,
            stage=stage,
            trigger_word=trigger,
            recovery_adapter=adapter,
            previews_with=PreviewModels(vae=recipe.models.vae, other=_other(recipe, stage, infos)),
        )
        job = build_over(build, recipe.settings(stage), info, places[stage], tell)
        made[stage] = with_copies(job, recipe.lora_folder.resolve())
        check_start(made[stage], info)
    return made


def _other(recipe: Recipe, stage: Stage, infos: Mapping[Stage, CheckpointInfo]) -> CheckpointInfo | None:
    """The other expert of a stage, if it is there."""
    if stage == "both":
        return inspect(Path(recipe.models.low))
    return infos.get(OTHER[stage]) if stage in OTHER else None


def _place(recipe: Recipe, device: str, pool: Sequence[str], gpus: int = 0) -> RunPlace:
    """Where a stage with this `device` is trained. `gpus`: of all machines, where there are several."""
    names = places_of(device, pool)[0].split(",")
    machine = len(names) if gpus else 0
    return RunPlace(gpus or len(names), device=names[0], machine=machine, scratch=recipe.cache_path)


def plan(job: Job, runs: Path, name: str) -> Planned:
    """The job's run folder: its own from before, or a new one; see `core/train/find_run.py`."""
    check_writable(runs)
    folder = find_run(runs, job)
    check_writable(folder.path)
    check_run_folder(folder.path)
    check_names_fit(folder.path, lora_name(job))
    return Planned(name, folder, job, runs)


def prepare_recipe(recipe: Recipe, devices: Sequence[str], display: ProgressDisplay, *, gpus: int = 0) -> list[Planned]:
    """Everything before training: checks, scan, caches, and the job of each stage.

    `devices`: the places that a stage may be trained on, as `pool_of` gives them. `gpus`: how many train a stage together,
    where they are those of several machines.
    """
    infos = check_recipe(recipe)
    check_paired(recipe)
    places: dict[Stage, RunPlace] = {
        stage: _place(recipe, recipe.settings(stage).device, devices, gpus) for stage in infos
    }
    dataset = scan(recipe, display)
    cached = cache_elsewhere(recipe, dataset, devices, display)
    if cached.notes:
        display.say(list_notes(cached.notes, limit=None))
    planned: list[Planned] = []
    made = jobs(recipe, infos, cached, places, display.say)
    for sentence in describe_lengths({stage: job_length(job) for stage, job in made.items()}):
        display.say(sentence)

    def expected(job: Job, count: int) -> tuple[float, int] | None:
        device = resolve_device(devices[0].split(",")[0])
        return run_seconds(job, infos[job.stage], count, device=device, folder=recipe.cache_path)

    gpus_of_stages: dict[Stage, int] = {stage: place.gpus for stage, place in places.items()}
    for sentence in describe_devices(list(made.values()), devices, gpus_of_stages, expected):
        display.say(sentence)
    for sentence in describe_turns(list(made.values()), devices):
        display.say(f"warning: {sentence}")
    for stage, job in made.items():
        for warning in job_warnings(job, recipe.settings(stage)):
            display.say(f"{stage}: warning: {warning}")
        planned.append(replace(plan(job, recipe.runs_path, stage), track=recipe.settings(stage).track))
        check_space_before(job, infos[stage].config, planned[-1].folder)
    return planned


def ship_loras(recipe: Recipe, finished: dict[str, Path], display: ProgressDisplay) -> list[Path]:
    """Write the LoRAs into the recipe's folder under its names, with its author; never over another LoRA."""
    slots: dict[Stage, Slot] = {"high": "high", "low": "low", "single": "single", "both": "single"}
    done: dict[Slot, Path] = {}
    for stage, slot in slots.items():
        if stage in finished:
            chosen = choose_lora(finished[stage], recipe.lora.weights)
            done[slot] = chosen.path
            if chosen.note:
                display.say(f"{slot}: {chosen.note}")
    named: dict[Slot, Path] = {slot: path for slot, path in done.items() if getattr(recipe.lora, slot)}
    usual: dict[Slot, Source] = {slot: Source(path) for slot, path in done.items() if slot not in named}
    orders: list[tuple[str, dict[Slot, Source]]] = [(recipe.name, usual)] if usual else []
    for slot, path in named.items():  # a name of one's own is the whole name of one file, as a single model's is
        orders.append((getattr(recipe.lora, slot), {"single": Source(path)}))
    files: list[Path] = []
    for name, sources in orders:
        options = ShipOptions(name=name, precision=recipe.lora.precision, author=recipe.author)
        shipment = ship(recipe.lora_folder, sources, options)
        for line in shipment.lines():
            display.say(line)
        files += shipment.files.values()
    if "high" in named and "low" in named:
        for warning in check_pair(read_adapter(named["high"]), read_adapter(named["low"])):
            display.say(f"- {warning}")
    return files


def _await_lock(lock: FileLock, device: torch.device, display: ProgressDisplay) -> None:
    if lock.acquire():
        return
    display.say(f"waiting for {device}, where another run trains. {lock.holder()}".rstrip())
    while not lock.acquire():
        time.sleep(POLL_SECONDS)

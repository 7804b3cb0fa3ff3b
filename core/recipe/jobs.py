"""Jobs that exist already: in a run folder, in a file, or in the metadata of the LoRA that came of them.

Somebody else may have written them. A job names files that are read, never where to write: that is the run's own folder.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..devices import AUTO
from ..errors import ConfigError, DatasetError, ModelFileError, RunError
from ..facts import TEXT_TOKENS
from ..launch.planned import Planned, gpus_of, pool_of
from ..paths import is_of_network, path_problem, shown
from ..settings.job import Job, TrainSample, job_from_json
from ..train.checks import check_model_file
from ..train.run_folder import RunFolder
from ..train.space import check_space_before
from ..train.spread import check_spread
from ..train.start import check_run_folder, check_start
from ..wan.checkpoint import CheckpointInfo
from ..wan.header import read_header
from .pipeline import plan
from .recipe import WORK_FOLDER, read_tables, read_text

_WEIGHTS = (".safetensors", ".gguf", ".json")  # the last: the index of a sharded model


def holds_job(path: Path) -> bool:
    """Whether `path` is a run folder, a LoRA or a job file; else it should be a recipe."""
    problem = path_problem(path, folders=True)
    if problem:
        raise ConfigError(f"{shown(path)} {problem}: name a run folder, a job.json, a LoRA or a recipe.")
    if path.is_dir() or path.suffix.lower() == ".safetensors":
        return True
    return path.suffix.lower() == ".json" and "schema" in read_tables(path)


def plan_existing(path: Path, work: Path | None, devices: list[str]) -> Planned:
    """The job at `path`, checked, and its run folder: its own if it has one, else one in `work`.

    `devices` that are named take the place of the job's device. Raises WanTrainError for a job that can't be trained
    here, before any model is loaded and before anything is written.
    """
    own = RunFolder((path if path.is_dir() else path.parent).resolve())
    is_of_folder = path.is_dir() or path.name == own.job_path.name
    if is_of_folder:
        check_run_folder(own.path)
        job = own.read_job()
    else:
        job = _job_of_lora(path) if path.suffix.lower() == ".safetensors" else _job_of_file(path)
    is_own = is_of_folder or _is_job_of(own, job)
    if devices:
        job = _on_others(job, devices)
    info = check_job(job, own.path if is_own else None)
    if is_own and work is not None:
        raise ConfigError(
            f"a folder for work, {work}, has no effect: {path} belongs to the run folder {own.path}, and the run goes on there."
        )
    runs = (work or path.parent / WORK_FOLDER).resolve() / "runs"
    planned = Planned(job.stage, own, job) if is_own else plan(job, runs, job.stage)
    check_space_before(job, info.config, planned.folder)
    return planned


def _on_others(job: Job, devices: list[str]) -> Job:
    """The job to go on over other devices; if they can't be grouped as the earlier ones, that is chosen anew."""
    count = gpus_of(AUTO, pool_of(devices))
    parallel = job.parallel if count % max(job.parallel.context, 1) == 0 else replace(job.parallel, context=0)
    return replace(job, device=AUTO, parallel=parallel)


def check_job(job: Job, folder: Path | None = None) -> CheckpointInfo:
    """What the job's model is.

    Refuses a job whose model or cached samples are not there, don't belong together, or are not what they should be.
    """
    for what, path in _paths(job):
        if is_of_network(path):
            raise ConfigError(
                f"{what} is {shown(path)}, on another machine or a device, which a job that may be a stranger's does not "
                "reach: map it to a drive letter, or train from the recipe or the graph."
            )
    _check_devices(job)
    _check_kinds(job)
    info = check_model_file(job.model)
    check_start(job, info, folder)
    _check_cached(job.data.empty_text_path, "the empty caption", "context", lambda shape: _is_text(job, shape))
    for prompt in job.data.prompts if job.previews.every else ():
        for text in (prompt.text, prompt.negative):
            name = f"the sample prompt {shown(prompt.asked.name)}"
            _check_cached(text.path, name, "context", lambda shape: _is_text(job, shape))
    for sample in job.data.samples:
        _check_sample(job, sample)
    return info


def _check_devices(job: Job) -> None:
    try:
        check_spread(job, gpus_of(job.device, [AUTO]))
    except ConfigError as error:
        if "," not in job.device:
            raise
        raise ConfigError(f"{error} The run goes on over other devices, fewer or more, if you name them.") from error


def places(job: Job) -> list[str]:
    """What the job has files read from, a line each, for the user to look at: the job may be a stranger's."""
    lines = [f"{what}: {shown(path, 400)}" for what, path in _paths(job, with_samples=False)]
    if job.optimizer.name == "custom":
        lines.append(f"optimizer_class, whose code is run: {shown(job.optimizer.path)}")
    samples = [path for sample in job.data.samples for path in sample.paths if path]
    folders = sorted({shown(Path(path).parent, 400) for path in [*samples, job.data.empty_text_path]})
    return lines + [f"cached samples: {folder}" for folder in folders]


def _paths(job: Job, *, with_samples: bool = True) -> Iterator[tuple[str, str]]:
    """(what it is, path) of every file that is read."""
    named = [
        ("model.path", job.model.path),
        ("model.recovery_adapter", job.model.recovery_adapter),
        ("preview_vae", job.preview_vae),
        ("other_expert.path", "" if job.other_expert is None else job.other_expert.path),
        *_adapter_files(job),
        *_crepa_files(job),
    ]
    if with_samples:
        named += [("data.empty_text_path", job.data.empty_text_path)]
        texts = [text for prompt in job.data.prompts for text in (prompt.text, prompt.negative)]
        named += [("a sample prompt", text.path) for text in texts]
        named += [(f"a file of {shown(s.name)}", path) for s in job.data.samples for path in s.paths]
    return ((what, path) for what, path in named if path)


def _adapter_files(job: Job) -> tuple[tuple[str, str], ...]:
    options, previews = job.adapter, job.previews
    return (
        ("adapter.start_from", options.start_from),
        ("adapter.merge_into_base", options.merge_into_base),
        ("previews.lora", previews.lora),
        ("previews.other_lora", previews.other_lora),
    )


def _crepa_files(job: Job) -> tuple[tuple[str, str], ...]:
    return ("crepa.encoder", job.crepa.encoder), ("crepa.vae", job.crepa.vae)


def _check_kinds(job: Job) -> None:
    """Nothing but weights is opened: a pickle of a stranger's choice could be more than that."""
    of_model = (("model.path", job.model.path), ("model.recovery_adapter", job.model.recovery_adapter))
    if job.other_expert is not None:
        of_model = (*of_model, ("other_expert.path", job.other_expert.path))
    for what, path in (*of_model, *_adapter_files(job), *_crepa_files(job)):
        is_folder = not path_problem(path, folders=True) and Path(path).is_dir()
        if path and not is_folder and Path(path).suffix.lower() not in _WEIGHTS:
            raise ModelFileError(f"{what} is {shown(path)}, which is neither a .safetensors nor a .gguf file.")
    if job.previews.every and job.preview_vae.lower().endswith((".pt", ".pth", ".bin", ".ckpt")):
        raise ModelFileError(
            f"preview_vae is {shown(job.preview_vae)}, a pickle: name the .safetensors file of the VAE, or set previews.every "
            "to 0."
        )


def _check_sample(job: Job, sample: TrainSample) -> None:
    name = shown(sample.name)

    def is_latents(shape: tuple[int, ...]) -> bool:
        return shape == sample.shape

    _check_cached(sample.latents_path, name, "latents", is_latents)
    _check_cached(sample.text_path, f"the caption of {name}", "context", lambda shape: _is_text(job, shape))
    for text in (*sample.more_texts, *sample.class_texts):
        _check_cached(text.path, f"a caption of {name}", "context", lambda shape: _is_text(job, shape))
    if sample.known_path:
        _check_cached(sample.known_path, f"the known frames of {name}", "latents", is_latents)
    if sample.vision_path:
        _check_cached(sample.vision_path, f"the known frames of {name}", "features", lambda shape: len(shape) == 2)
    if sample.mask_path:
        _check_cached(sample.mask_path, f"the mask of {name}", "mask", lambda shape: shape == sample.shape[1:])


def _is_text(job: Job, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and 1 <= shape[0] <= TEXT_TOKENS and shape[1] == job.data.text_dim


def _check_cached(path: str, name: str, key: str, fits: Callable[[tuple[int, ...]], bool]) -> None:
    problem = path_problem(path)
    if problem:
        why = "" if problem == "does not exist" else f", which {problem}"
        raise DatasetError(
            f"what was cached of {name} is not at {shown(path)}{why}: bring the cache folder back, or train from the recipe or "
            "the graph, which encode it again."
        )
    entry = read_header(Path(path)).entries.get(key)
    if entry is None or entry.dtype != "F32" or not fits(entry.shape):
        found = f"has {key} of the shape {list(entry.shape)} ({entry.dtype})" if entry else f"has no {key}"
        raise DatasetError(
            f"{shown(path)} is not what was cached of {name}, for it {found}: bring the cache folder back, or train from the "
            "recipe or the graph, which encode it again."
        )


def _is_job_of(folder: RunFolder, job: Job) -> bool:
    """Whether the folder is the job's own run; what is no run folder, or another's, stays as it is."""
    if path_problem(folder.job_path):
        return False
    try:
        return folder.read_job().key == job.key
    except (RunError, ConfigError):
        return False


def _job_of_file(path: Path) -> Job:
    return job_from_json(read_text(path), path)


def _job_of_lora(path: Path) -> Job:
    metadata = read_header(path).metadata
    if "wantrain.job" not in metadata:
        why = " (it was left out because it is long)" if "wantrain.job" in metadata.get("wantrain.left_out", "") else ""
        raise ConfigError(f"{path} holds no job of this trainer{why}: name its run folder, or a recipe.")
    return job_from_json(metadata["wantrain.job"], path)

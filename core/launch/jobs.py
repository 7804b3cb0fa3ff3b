"""Jobs that exist already: in a run folder, in a file, or in the metadata of the LoRA that came of them."""

import json
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, DatasetError, RunError
from ..train.job import Job, job_from_json
from ..train.prepare import check_data, check_model_file
from ..train.run_folder import RunFolder
from ..wan.header import read_header
from .pipeline import plan
from .recipe import WORK_FOLDER, read_tables
from .stages import Planned


def holds_job(path: Path) -> bool:
    """Whether `path` is a run folder, a LoRA or a job file; else it should be a recipe."""
    if path.is_dir() or path.suffix.lower() == ".safetensors":
        return True
    return path.suffix.lower() == ".json" and "schema" in read_tables(path)


def plan_existing(path: Path, work: Path | None, devices: list[str]) -> Planned:
    """The job at `path`, checked, and its run folder: its own if it has one, else one in `work`.

    `devices` that are named take the place of the job's device. Raises WanTrainError for a job that can't be trained
    here, before any model is loaded.
    """
    own = RunFolder((path if path.is_dir() else path.parent).resolve())
    if path.is_dir() or path.name == own.job_path.name:
        job = own.read_job()
    else:
        job = _job_of_lora(path) if path.suffix.lower() == ".safetensors" else _job_of_file(path)
    check_job(job)
    if devices:
        job = replace(job, device="auto")
    is_own = own.job_path.is_file() and own.read_job().key == job.key
    if not is_own:
        return plan(job, (work or path.parent / WORK_FOLDER).resolve() / "runs", job.stage)
    if work is not None:
        raise ConfigError(
            f"--work has no effect: {path} belongs to the run folder {own.path}, and the run goes on there."
        )
    return Planned(job.stage, own, job)


def check_job(job: Job) -> None:
    """Refuse a job whose model or cached samples are not there, or don't belong together."""
    check_data(job, check_model_file(job.model))
    paths = [(s.name, p) for s in job.data.samples for p in (s.latents_path, s.text_path, s.known_path, s.vision_path)]
    for name, path in [*paths, ("the empty caption", job.data.empty_text_path)]:
        if path and not Path(path).is_file():
            raise DatasetError(
                f"what was cached of {name} is not at {path}: bring the cache folder back, or train from the recipe or the "
                "graph, which encode it again."
            )


def _job_of_file(path: Path) -> Job:
    try:
        return job_from_json(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise RunError(f"{path} can't be read ({error.strerror or error}): name a job.json.") from error


def _job_of_lora(path: Path) -> Job:
    metadata = read_header(path).metadata
    if "wantrain.job" not in metadata:
        why = " (it was left out because it is long)" if "wantrain.job" in metadata.get("wantrain.left_out", "") else ""
        raise ConfigError(f"{path} holds no job of this trainer{why}: name its run folder, or a recipe.")
    return job_from_json(json.dumps(json.loads(metadata["wantrain.job"])), path)

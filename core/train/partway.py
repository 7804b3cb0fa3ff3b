"""The LoRAs that a run has on the way: its checkpoints, each of which holds one."""

import re
import shutil
from pathlib import Path
from typing import BinaryIO

from ..disk import write_atomic
from ..errors import START_AGAIN, ConfigError, RunError
from ..names import is_plain
from ..settings.job import Job
from .checkpoints import ADAPTER, AVERAGE
from .label import lora_name
from .run_folder import RunFolder
from .sound import refuse_damaged, sound_steps

_NAME = re.compile(r"([^/\\]+) / step (\d{1,8})")


def checkpoint_lora(folder: RunFolder, step: int) -> Path | None:
    """The LoRA file inside the checkpoint of this step; None where there is none. It goes when the checkpoint does.

    Where the run averages its weights it is the average, as the run's own LoRA will be.
    """
    found = next((path for number, path in folder.checkpoints() if number == step), None)
    if found is None:
        return None
    return found / AVERAGE if (found / AVERAGE).is_file() else found / ADAPTER


def checkpoint_names(runs: Path) -> list[str]:
    """Every checkpoint in `runs`, the folder of run folders, as "RUN / step N"; the newest runs first."""
    folders = [RunFolder(path) for path in runs.glob("*") if (path / "checkpoints").is_dir()]
    folders.sort(key=_changed, reverse=True)
    return [f"{folder.path.name} / step {step}" for folder in folders for step, _ in reversed(folder.checkpoints())]


def _changed(folder: RunFolder) -> float:
    try:
        return folder.checkpoints_path.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def named_checkpoint(runs: Path, name: str) -> Path | None:
    """The LoRA file behind one of `checkpoint_names`; None for another name. ConfigError if the checkpoint is gone
    or damaged.
    """
    match = _NAME.fullmatch(name)
    if match is None or not is_plain(match[1]):
        return None
    run, step = RunFolder(runs / match[1]), int(match[2])
    lora = checkpoint_lora(run, step)
    if lora is None:
        raise ConfigError(
            f"the checkpoint '{name}' is gone: a run keeps the newest ones (see keep_last). Choose another."
        )
    refuse_damaged(run, step)
    return lora


def keep_newest(folder: RunFolder, job: Job) -> tuple[int, Path]:
    """The step of the newest checkpoint that is sound, and a copy of its LoRA in the run's folder, which outlives it.

    It is named NAME_stepN. RunError where there is no checkpoint, or it can't be copied.
    """
    newest = max((step for step in sound_steps(folder) if step <= job.loop.steps), default=0)
    source = checkpoint_lora(folder, newest)
    if source is None:
        raise RunError(
            f"{folder.path} has no checkpoint yet, so that there is no LoRA to use: let it train for a step."
        )
    target = folder.path / f"{lora_name(job)}_step{newest}.safetensors"

    def copy(file: BinaryIO) -> None:
        with source.open("rb") as stream:
            shutil.copyfileobj(stream, file)

    try:
        write_atomic(target, copy)
    except FileNotFoundError as error:
        message = f"the checkpoint of step {newest} went away while it was copied."
        raise RunError(message, about=START_AGAIN) from error
    return newest, target

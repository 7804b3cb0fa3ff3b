"""Which weights of a run become its LoRA: those of the last step, of the best checkpoint, or the average of all kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from ..adapters.formats import LoraFile, write_lora
from ..adapters.kind import ADAPTER_KINDS
from ..adapters.metadata import LoraDescription, lora_metadata
from ..adapters.post_hoc import average_loras, power_decays
from ..errors import ConfigError
from ..safetensors_file import write_safetensors
from ..settings.job import Job
from ..wan.header import read_header
from ..words import counted
from .checkpoints import ADAPTER, AVERAGE
from .label import lora_name
from .partway import keep_newest
from .run import describe
from .run_folder import RunFolder
from .scores import best_checkpoint
from .sound import damaged_lora, refuse_damaged
from .start import check_run_folder

ChosenWeights = Literal["last", "best", "average"]
WEIGHTS: dict[ChosenWeights, str] = {
    "last": "of the file that is given",
    "best": "of the run's best checkpoint, as its score says",
    "average": "the average of all checkpoints that the run keeps (post-hoc EMA)",
}
AVERAGE_WIDTH = 0.2  # by default, as a share of the way from the first checkpoint to the last
_POST_HOC = "post_hoc_ema"  # what the file says that it holds


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA file, and what to say of it; "" where it is the one that was given."""

    path: Path
    note: str = ""


def choose_lora(lora: Path, weights: ChosenWeights = "last", width: float = AVERAGE_WIDTH) -> ChosenLora:
    """What becomes of a run's LoRA or of one of its checkpoints. `width`: of the average, see `power_decays`.

    ConfigError for a file that is of no run folder where another than itself is wanted, or where the run can't tell.
    """
    if weights == "last":
        return ChosenLora(described_lora(lora))
    run = run_of(lora)
    if run is None:
        raise ConfigError(
            f"{lora.name} does not lie in the folder of a run, so that there are no checkpoints to choose from: use last, or "
            "give the LoRA of a training."
        )
    job = run.read_job()
    if weights == "average":
        folders = [path for _, path in run.checkpoints()]
        mean, metadata = average_checkpoints(run, power_decays(len(folders), width), f"{lora_name(job)}_average")
        target = run.path / f"{lora_name(job)}_average.safetensors"
        write_lora(target, mean.modules, metadata=metadata, dtype=torch.float32)
        return ChosenLora(target, f"the average of {len(folders)} checkpoints of {run.path.name}")
    best = best_checkpoint(run, job)
    loss = "" if best.loss is None else f", held-out loss {best.loss:.4f}"
    return ChosenLora(described_lora(best.lora), f"step {best.step} of {run.path.name}, the best checkpoint{loss}")


def run_of(lora: Path) -> RunFolder | None:
    """The run in whose folder a LoRA lies, or in one of whose checkpoints; None for any other file."""
    for folder in (lora.parent, *([lora.parents[2]] if lora.name in (ADAPTER, AVERAGE) else [])):
        if RunFolder(folder).is_there:
            return RunFolder(folder)
    return None


def lora_of_run(run: RunFolder) -> Path:
    """The LoRA of a finished run, else a copy of that of its newest checkpoint. RunError where there is neither."""
    job = run.read_job()
    return run.finished_lora(job.loop.steps) or keep_newest(run, job)[1]


def described_lora(lora: Path) -> Path:
    """The file; for a checkpoint of an earlier version, which says nothing of itself, a copy that does.

    The copy lies in the run's folder as NAME_stepN. ConfigError for a checkpoint that is damaged.
    """
    run = run_of(lora)
    if run is None or lora.name not in (ADAPTER, AVERAGE) or not lora.is_file():
        return lora
    step = int(lora.parent.name.rpartition("-")[2])
    refuse_damaged(run, step)
    if "modelspec.architecture" in read_header(lora).metadata:
        return lora
    job = run.read_job()
    target = run.path / f"{lora_name(job)}_step{step}.safetensors"
    metadata = {**lora_metadata(_described(run, job, step, target.stem)), "format": "pt"}
    write_safetensors(target, load_file(lora), metadata)
    return target


def average_checkpoints(run: RunFolder, decays: Sequence[float], name: str) -> tuple[LoraFile, dict[str, str]]:
    """The mean of the checkpoints that a run keeps, and the metadata of its file. ConfigError for fewer than two,
    where one is damaged, and for adapters of which there is no mean.
    """
    check_run_folder(run.path)
    found, job = run.checkpoints(), run.read_job()
    if not ADAPTER_KINDS.get(job.adapter.kind).is_plain:
        raise ConfigError(
            f"{run.path.name} has trained the adapter {job.adapter.kind}, and only plain LoRAs can be averaged afterwards: take"
            " its last or its best checkpoint, or train with ema, which averages meanwhile."
        )
    if len(found) < 2:
        raise ConfigError(
            f"{run.path} keeps {counted(len(found), 'checkpoint')}, and an average needs two or more: train with a larger "
            "keep_last or a smaller checkpoint_every."
        )
    for step, _ in found:
        why = damaged_lora(run, step)
        if why:
            raise ConfigError(
                f"the checkpoint of step {step} of {run.path.name} is damaged ({why}): move its folder away, and the average "
                "is that of the others."
            )
    mean = average_loras([path / ADAPTER for _, path in found], decays)
    described = _described(run, job, found[-1][0], name)
    return mean, lora_metadata(replace(described, weights=_POST_HOC))


def average_files(paths: Sequence[Path], decays: Sequence[float]) -> tuple[LoraFile, dict[str, str]]:
    """The same for LoRA files, the earliest first."""
    mean = average_loras(paths, decays)
    return mean, {**mean.metadata, "wantrain.weights": _POST_HOC}


def _described(run: RunFolder, job: Job, step: int, name: str) -> LoraDescription:
    return replace(describe(run, job, step), name=name)

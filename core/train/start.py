"""Everything that is checked before a run starts, for the node, the command line and the training process alike.

A run takes hours: what would fail at its end fails here. A run folder may come from somebody else: nothing is written
through a link that leads out of it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import torch

from ..adapters.kind import ADAPTER_KINDS
from ..adapters.merged_base import merged_base
from ..adapters.metadata import base_model_name, lora_metadata
from ..adapters.start_from import check_file, check_start_file
from ..adapters.transfer import model_shapes
from ..errors import ConfigError, RunError
from ..memory.precision import AUTO, needed_by_precision, needs_adapter
from ..moving import temporary_sibling
from ..optimizers import OPTIMIZERS
from ..packages import ALWAYS, check_packages
from ..paths import GONE, path_problem, shown, too_long
from ..plan.planning import stored_block_bytes
from ..sample.previews import check_previews
from ..settings.ema import EmaOptions
from ..settings.groups import Groups
from ..settings.job import Job
from ..settings.optimizer import OptimizerOptions
from ..wan.checkpoint import CheckpointInfo
from .checkpoints import ADAPTER, Checkpoints
from .checks import check_data
from .label import beside_name, describe_lora, lora_name
from .requests import REQUEST_FILES
from .shared import check_shared

_FILES = (
    "job.json",
    "events.jsonl",
    "worker.log",
    "result.json",
    "workflow.json",
    "page.json",
    "plan.json",
    "stop",
    *REQUEST_FILES,
    ".lock",
)
_FOLDERS = ("checkpoints", "previews")
MAX_ENTRIES = 100_000  # files in a run folder: a run makes some hundreds


def check_start(job: Job, info: CheckpointInfo, folder: Path | None = None) -> None:
    """Refuse a job that can't be trained to its end, down to the last file, before anything large is read.

    `info`: the job's model. `folder`: of the run, where it is known; it need not exist yet. Raises ConfigError, or
    RunError for the folder.
    """
    check_packages(needed_packages(job.optimizer.name, job.model.precision))
    check_methods(job)
    check_data(job, info)
    check_shared(job, info)
    check_previews(job)
    check_end(job, info)
    check_adapter_files(
        job, info, has_checkpoint=folder is not None and bool(Checkpoints(folder / "checkpoints").all())
    )
    if folder is not None:
        check_run_folder(folder)
        check_names_fit(folder, lora_name(job))
        if job.ema.use:
            check_names_fit(folder, beside_name(job))


def check_methods(groups: Groups) -> None:
    """ConfigError for an optimizer that does not go with its options, or with what is trained. Nothing has to be there."""
    options, kind, crepa = groups.optimizer, groups.adapter.kind, groups.crepa.weight
    check_optimizer(options, groups.ema)
    if options.lora_plus != 1.0 and not ADAPTER_KINDS.get(kind).knows_lora_plus:
        raise ConfigError(
            f"lora_plus_ratio is {options.lora_plus:g}, but the adapter {kind} has no second matrix (B) that it could be for: "
            "set lora_plus_ratio to 1, or choose lora."
        )
    if crepa and not _takes_vectors(options):
        raise ConfigError(
            f"the optimizer {options.path or options.name} trains matrices alone, but CREPA (crepa_weight {crepa:g}) trains a "
            "projection that has other tensors: choose another optimizer, or set crepa_weight to 0."
        )


def _takes_vectors(options: OptimizerOptions) -> bool:
    """Whether an optimizer trains other tensors than matrices, too; of a class that is not known beforehand by trying."""
    method = OPTIMIZERS.get(options.name)
    if method.more_state is not None:
        return not method.is_for_matrices
    try:
        method.build([torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))], options)
    except ConfigError:
        return False
    return True


def check_optimizer(options: OptimizerOptions, ema: EmaOptions) -> None:
    """ConfigError for an optimizer that can't be used with its options, or not with an average beside it."""
    method = OPTIMIZERS.get(options.name)
    problem = method.problem(options)
    if problem:
        raise ConfigError(problem)
    if method.is_one_rate and options.lora_plus != 1.0:
        raise ConfigError(
            f"lora_plus_ratio is {options.lora_plus:g}, but the optimizer {options.name} has one learning rate for all: set "
            "lora_plus_ratio to 1, or choose another optimizer."
        )
    if ema.use and method.averages_with(options):
        raise ConfigError(
            f"ema is on, but the optimizer {options.name} averages the weights by itself: turn ema off, or choose another "
            "optimizer."
        )


def check_adapter_files(job: Job, info: CheckpointInfo, *, has_checkpoint: bool) -> None:
    """ConfigError or ModelFileError for adapter files that are not what they were, or do not go with model and options.

    `has_checkpoint`: the run goes on from one, so that it does not need the file that it started from.
    """
    options, shapes = job.adapter, model_shapes(info.config)
    if options.start_from and not has_checkpoint:
        check_file(options.start_from, job.start_identity, "start_from")
        check_start_file(options, shapes)
    if not options.merge_into_base:
        return
    check_file(options.merge_into_base, job.merge_identity, "merge_into_base")
    merged = merged_base(options.merge_into_base, options.merge_strength, shapes)
    if needs_adapter(job.model.precision):
        raise ConfigError(
            "merge_into_base does not go with the precision ara, which was measured without it: choose another."
        )
    if stored_block_bytes(info, torch.float32) is not None and merged.modules:
        raise ConfigError(
            f"merge_into_base can't be added to {info.path.name}, whose weights are quantized (GGUF): use the model's"
            " .safetensors file, or leave merge_into_base empty."
        )


def needed_packages(optimizer: str | None, precision: str) -> tuple[str, ...]:
    """For a training with this optimizer on a base of this precision, as pip knows them; "" where it is not chosen yet.

    ConfigError for an optimizer that is not known; None: not known yet.
    """
    of_optimizer = () if optimizer is None else OPTIMIZERS.get(optimizer).packages
    return tuple(dict.fromkeys((*ALWAYS, *of_optimizer, *needed_by_precision(precision or AUTO))))


def check_end(job: Job, info: CheckpointInfo) -> None:
    """ConfigError if the LoRA could not be labelled at the end, or a file that is needed on the way can't be read."""
    if not job.model.label:
        label = base_model_name(info.config, is_expert=job.stage != "single")
        raise ConfigError(
            f"the job says nothing about its base model, which the LoRA is labelled with: set model.label to '{label}'."
        )
    lora_metadata(describe_lora(job, step=job.loop.steps))
    for what, path in (("preview_vae", job.preview_vae), ("model.recovery_adapter", job.model.recovery_adapter)):
        problem = path_problem(path, folders=what == "preview_vae") if path else ""
        if what == "preview_vae" and problem == GONE:
            continue  # it costs the previews, with a warning, and not the run
        if problem:
            raise ConfigError(f"{what} is {shown(path)}, which {problem}: bring the file back, or start a new run.")


def check_names_fit(folder: Path, name: str) -> None:
    """RunError if the LoRA can't be given its name in the end: a folder has it, or the file system takes none as long.

    Nor may the longest path that a run writes be longer than Windows takes.
    """
    checkpoint = temporary_sibling(folder / "checkpoints" / "step-00000000")
    longest = max(
        temporary_sibling(checkpoint / ADAPTER),
        temporary_sibling(folder / f"{name}.safetensors"),
        key=lambda path: len(str(path)),
    )
    length = too_long(longest)
    if length:
        raise RunError(f"{folder} is too deep for the files of this training: the longest of their paths {length}.")
    if (folder / f"{name}.safetensors").is_dir():
        raise RunError(f"{folder / name}.safetensors is a folder, where the LoRA will be written: move it away.")
    probe = temporary_sibling(folder / f"{name}.safetensors")
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    try:
        (existing / probe.name).touch()
        (existing / probe.name).unlink()
    except OSError as error:
        raise RunError(
            f"a file of the name {shown(name)}.safetensors can't be written in {existing} ({error.strerror or error}): choose "
            "a shorter name, or check the folder."
        ) from error


def check_run_folder(folder: Path) -> None:
    """RunError for a run folder in which writing would reach something else: another folder's file, a pipe, a device.

    Such a folder may come from an archive. What does not exist yet is in order.
    """
    for number, entry in enumerate(_entries(folder)):
        if number >= MAX_ENTRIES:
            raise RunError(f"{folder} holds more than {MAX_ENTRIES} files, so it is no run folder: name another one.")
        problem = _entry_problem(entry, folder)
        if problem:
            raise RunError(
                f"{shown(entry.path, 400)} {problem}: a run writes into its own folder only; put the file itself there, or "
                "remove it."
            )


def _entries(folder: Path) -> "Iterator[os.DirEntry[str]]":
    """Everything below the folder, into which no link is followed."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False) and not _is_junction(entry):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(f"{folder} can't be read ({error.strerror or error}): check its permissions.") from error


def _entry_problem(entry: "os.DirEntry[str]", folder: Path) -> str:
    try:
        if entry.is_symlink() or _is_junction(entry):
            target = Path(entry.path).resolve()
            return "" if target.is_relative_to(folder.resolve()) else f"is a link to {shown(target, 400)}"
        # Of the file itself: Windows' list of a folder does not say how many names a file has.
        found = os.stat(entry.path, follow_symlinks=False)  # noqa: PTH116
    except FileNotFoundError:  # by another process, in the meantime
        return ""
    except (OSError, RuntimeError) as error:  # a loop of links
        return f"can't be followed ({error})"
    if stat.S_ISDIR(found.st_mode):
        is_file_of_a_run = entry.name in _FILES and Path(entry.path).parent == folder
        return "is a folder, not a file" if is_file_of_a_run else ""
    if not stat.S_ISREG(found.st_mode):
        return "is a pipe, a device or a socket, not a file"
    if entry.name in _FOLDERS and Path(entry.path).parent == folder:
        return "is a file, not a folder"
    is_appended_to = entry.name in ("events.jsonl", "worker.log")
    return "is one file with another name elsewhere (a hard link)" if is_appended_to and found.st_nlink > 1 else ""


def _is_junction(entry: "os.DirEntry[str]") -> bool:
    """Windows' other kind of link to a folder, which Python before 3.12 takes for the folder itself."""
    if os.name != "nt":
        return False
    attributes = getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0)
    return attributes == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)

"""The checkpoints of a run: a folder each, `step-00000250`, whole or not there at all, and checked when read.

A folder holds `adapter.safetensors`, `state.pt` with everything else that has state, and `manifest.json`, written last,
with the size and sha256 of each. Where a run shows an average of its weights, `average.safetensors` holds that, for LoRA
tools: a resume does not read it. Folders of earlier versions have no manifest and are read without that check. What is
found damaged is renamed to `damaged-step-00000250` and kept. Where an incomplete one is held by another program, so that it
can't be, the next of its step has one more zero in its name.
"""

import errno
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file

from ..disk import HashingWriter, disk_error, file_digest, set_aside, write_atomic
from ..errors import START_AGAIN, RunError
from ..moving import is_held, remove_folder, rename, temporary_sibling
from ..safe_json import parse_object, seal, unseal
from ..safetensors_file import write_safetensors
from ..shortage import ShortageError, is_out_of_memory
from ..torch_compat import saving_without_checksums

ADAPTER, AVERAGE, STATE, MANIFEST = "adapter.safetensors", "average.safetensors", "state.pt", "manifest.json"
_VERSION = 1  # of the manifest
MOST_DIGITS = 20  # of a step in a name


class DamagedCheckpointError(RunError):
    """A checkpoint that is not what was written; the message is a clause that names the file and says why."""


class HeldError(RunError):
    """A checkpoint that was written, but can't be given its name, as another program has a file of it open."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints` of a run."""

    path: Path

    def all(self) -> list[tuple[int, Path]]:
        """(step, folder) of the complete checkpoints, oldest first."""
        return [(step, folder) for step, folder in self._folders() if _is_complete(folder)]

    def incomplete(self) -> list[tuple[int, Path]]:
        """(step, folder) of those that lack a file, oldest first."""
        return [(step, folder) for step, folder in self._folders() if not _is_complete(folder)]

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        state: dict[str, Any],
        *,
        keep_last: int,
        keep_also: Collection[int] = (),
        training: str = "",
        metadata: Mapping[str, str] | None = None,
        average: dict[str, torch.Tensor] | None = None,
    ) -> Path:
        """Write one checkpoint folder in one move, then drop the oldest beyond `keep_last`, but for the steps `keep_also`.

        `training`: the key of the job, noted beside. `metadata`: of the files that LoRA tools can read. `average`: tensors
        for LoRA tools alone. Raises RunError when the disk refuses, HeldError when another program has it open; earlier
        checkpoints are untouched.
        """
        there = self.all()
        if step in dict(there):
            return dict(there)[step]
        newest = there[-1:]
        kept = f"the checkpoint of step {newest[0][0]} is kept" if newest else "there is no earlier checkpoint"
        target = self.free_path(step)
        temporary = temporary_sibling(target)
        try:
            temporary.mkdir(parents=True)
            described = {**(metadata or {}), "format": "pt"}
            with ThreadPoolExecutor(2, thread_name_prefix="checkpoint") as pool:  # most of the time goes to hashes
                of_state = pool.submit(_write_state, temporary / STATE, {**state, "manifest": _VERSION}, kept)
                of_adapter = pool.submit(write_safetensors, temporary / ADAPTER, tensors, described, kept=kept)
                own = {}
                if average is not None:
                    own[AVERAGE] = write_safetensors(temporary / AVERAGE, average, described, kept=kept)
            files = {ADAPTER: of_adapter.result(), STATE: of_state.result(), **own}
            _write_manifest(temporary / MANIFEST, step, training, files, kept)
            _name_whole(temporary, target, kept)
        except OSError as error:
            raise disk_error(error, target, kept) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for number, folder in self.all()[:-keep_last]:
            if number not in keep_also:
                remove_folder(folder)
        return target

    def free_path(self, step: int) -> Path:
        """Where a checkpoint of this step can be put; what is there and is incomplete is set aside, if nobody holds it."""
        target, digits = self.path / f"step-{step:08d}", 8
        if target.exists():
            with suppress(RunError):
                set_aside(target)
        while target.exists():
            digits += 1
            target = self.path / f"step-{step:0{digits}d}"
        return target

    def load(self, folder: Path, *, training: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Adapter tensors, and the state of everything else by name, on the CPU.

        DamagedCheckpointError if it is not what was written, ShortageError if memory is too small for it, RunError if it
        can't be read or is of another training.
        """
        manifest = read_manifest(folder)
        if manifest is not None:
            check_place(manifest, folder, training)
        for name in (ADAPTER, STATE):
            _check_file(folder / name, manifest)
        tensors = _decode(folder / ADAPTER, load_file, is_checked=manifest is not None)
        state = _decode(folder / STATE, _load_state, is_checked=manifest is not None)
        if not isinstance(state, dict):
            raise DamagedCheckpointError(f"{folder / STATE} holds something else")
        if manifest is None and "manifest" in state:
            raise DamagedCheckpointError(f"{folder / MANIFEST} is missing")
        return tensors, state

    def sweep(self) -> None:
        """Remove what an interrupted write left behind."""
        for leftover in self.path.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _folders(self) -> list[tuple[int, Path]]:
        found = []
        for folder in self.path.glob("step-*"):
            step = step_of(folder)
            if step is not None and folder.is_dir():
                found.append((step, folder))
        return sorted(found)


def step_of(folder: Path) -> int | None:
    """The step that the name of a checkpoint's folder says; None of others."""
    number = folder.name.removeprefix("step-")
    is_one = number != folder.name and number.isascii() and number.isdecimal() and len(number) < MOST_DIGITS
    return int(number) if is_one else None


@contextmanager
def memory_suffices_for(what: str) -> Iterator[None]:
    """ShortageError for whatever says that memory ran out, here while `what` was read."""
    try:
        yield
    except ShortageError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = "The GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "Main memory"
        raise ShortageError(
            f"{where} ran out while {what} was read ({_first_line(error)}): close other programs and start again; the "
            "checkpoint is as it was.",
            about=START_AGAIN,
        ) from error


def _is_complete(folder: Path) -> bool:
    return (folder / ADAPTER).is_file() and (folder / STATE).is_file()


def _name_whole(temporary: Path, target: Path, kept: str) -> None:
    try:
        rename(temporary, target)
    except OSError as error:
        if is_held(error):
            raise HeldError(str(disk_error(error, target, kept))) from error
        raise


def _write_state(path: Path, state: dict[str, Any], kept: str) -> tuple[int, str]:
    written = (0, "")

    def write(file: BinaryIO) -> None:
        nonlocal written
        hashing = HashingWriter(file)
        _save_state(state, hashing)
        written = hashing.size, hashing.sha256

    write_atomic(path, write, kept=kept)
    return written


def _save_state(state: dict[str, Any], file: HashingWriter) -> None:
    """torch.save, but a failed write stays an OSError: torch's zip writer covers it with an error of its own."""
    failures: list[OSError] = []

    class Recorder:
        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failures.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        with saving_without_checksums():  # the manifest has the file's sha256
            torch.save(state, Recorder())  # type: ignore[arg-type]
    except Exception as error:
        raise (failures[0] if failures else error) from error


def _load_state(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _write_manifest(path: Path, step: int, training: str, files: dict[str, tuple[int, str]], kept: str) -> None:
    described = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in files.items()}
    manifest = seal({"version": _VERSION, "step": step, "training": training, "files": described})
    write_atomic(path, lambda file: file.write(json.dumps(manifest, indent=2).encode()), kept=kept)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What was noted of the files; None in folders of earlier versions. DamagedCheckpointError if it was damaged."""
    path = folder / MANIFEST
    try:
        manifest = unseal(sealed := parse_object(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error
    if manifest == sealed:
        raise DamagedCheckpointError(f"{path} has lost its own sha256")
    if manifest.get("version") != _VERSION:
        raise RunError(f"{path} was written by a newer version: update ComfyUI-WanTrain.")
    return manifest


def check_place(manifest: dict[str, Any], folder: Path, training: str) -> None:
    """DamagedCheckpointError for another step's, RunError for another training's."""
    if step_of(folder) != manifest["step"]:
        raise DamagedCheckpointError(f"{folder} holds the checkpoint of step {manifest['step']}")
    if training and manifest["training"] not in ("", training):
        raise RunError(
            f"{folder} is of another training, with other data or settings: put it back where it came from, or move it away."
        )


def _check_file(path: Path, manifest: dict[str, Any] | None) -> None:
    """Read the file to its end, and compare it with what was noted."""
    try:
        with memory_suffices_for(str(path)):
            size, sha256 = file_digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if manifest is None:
        return
    noted = manifest["files"].get(path.name, {})
    if size != noted.get("size"):
        raise DamagedCheckpointError(f"{path} has {size} bytes instead of {noted.get('size')}")
    if sha256 != noted.get("sha256"):
        raise DamagedCheckpointError(f"{path} has another sha256 than what was written")


def _decode(path: Path, read: Any, *, is_checked: bool) -> Any:
    try:
        with memory_suffices_for(str(path)):
            return read(path)
    except ShortageError:
        raise
    except Exception as error:  # the libraries raise whatever the bytes lead to, OSError too
        if is_checked:
            raise RunError(
                f"{path} is as it was written, but can't be read here ({_first_line(error)}): use the versions of torch and "
                "safetensors that wrote it, or newer ones."
            ) from error
        raise DamagedCheckpointError(f"{path} can't be decoded: {_first_line(error)}") from error


def _unreadable(path: Path, error: OSError) -> RunError:
    """A file that the disk can't give is damaged; a place that can't be reached is no reason to pass anything over."""
    if error.errno == errno.EIO:
        return DamagedCheckpointError(f"{path} can't be read from the disk: {error.strerror}")
    return RunError(
        f"{path} can't be read ({error.strerror or error}): mend that and start again; nothing was changed.",
        about=START_AGAIN,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")

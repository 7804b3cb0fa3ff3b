"""The checkpoints of a run: a folder each, `step-00000250`, whole or not there at all."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file

from ..adapters.container import write_safetensors
from ..disk import disk_error, temporary_sibling, write_atomic


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints` of a run."""

    path: Path

    def all(self) -> list[tuple[int, Path]]:
        """(step, folder) of the complete checkpoints, oldest first."""
        found = []
        for folder in self.path.glob("step-*"):
            number = folder.name.removeprefix("step-")
            if number.isdigit() and (folder / "adapter.safetensors").is_file() and (folder / "state.pt").is_file():
                found.append((int(number), folder))
        return sorted(found)

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict, *, keep_last: int) -> Path:
        """Write one checkpoint folder in one move, then drop the oldest beyond `keep_last`.

        Raises RunError when the disk refuses; earlier checkpoints are untouched.
        """
        target = self.path / f"step-{step:08d}"
        if target.exists():
            return target
        newest = self.all()[-1:]
        kept = f"the checkpoint of step {newest[0][0]} is kept" if newest else "there is no earlier checkpoint"
        temporary = temporary_sibling(target)
        try:
            temporary.mkdir(parents=True)
            write_safetensors(temporary / "adapter.safetensors", tensors, {"format": "pt"}, kept=kept)
            write_atomic(temporary / "state.pt", lambda file: _save_state(state, file), kept=kept)
            temporary.rename(target)
        except OSError as error:
            raise disk_error(error, target, kept) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for _, folder in self.all()[:-keep_last]:
            shutil.rmtree(folder, ignore_errors=True)
        return target

    def load(self, folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
        """Adapter tensors and optimizer state of one checkpoint, on the CPU."""
        return load_file(folder / "adapter.safetensors"), torch.load(folder / "state.pt", weights_only=True)

    def sweep(self) -> None:
        """Remove what an interrupted write left behind."""
        for leftover in self.path.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def _save_state(state: dict, file: BinaryIO) -> None:
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
        torch.save(state, Recorder())  # type: ignore[arg-type]
    except Exception as error:
        raise (failures[0] if failures else error) from error

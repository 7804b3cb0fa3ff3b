"""A run is a folder: `job.json`, `events.jsonl`, `checkpoints/`, the LoRA. Everything that shows a run reads it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file

from ..adapters.container import write_safetensors
from ..disk import disk_error, temporary_sibling, write_atomic
from ..errors import RunError
from ..locks import FileLock
from .job import SCHEMA, Job, job_from_json, job_to_json, newer_schema

STOP_FILE = "stop"


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @property
    def job_path(self) -> Path:
        """The frozen configuration."""
        return self.path / "job.json"

    @property
    def events_path(self) -> Path:
        """The diary."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """What the worker printed."""
        return self.path / "worker.log"

    @property
    def checkpoints_path(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def result_path(self) -> Path:
        """Written last: says that the run is finished, and which file is its LoRA."""
        return self.path / "result.json"

    @property
    def scratch_path(self) -> Path:
        """For what may be used again and may be deleted: `cache` beside the folder of runs, or inside a run elsewhere."""
        runs = self.path.parent
        return runs.parent / "cache" if runs.name == "runs" else self.path / "cache"

    @property
    def workflow_path(self) -> Path:
        """The workflow that started the run, to be embedded in the LoRA."""
        return self.path / "workflow.json"

    def lock(self) -> FileLock:
        """The lock that the one process training in this folder holds."""
        return FileLock(self.path / ".lock")

    def read_job(self) -> Job:
        """The job; RunError if the folder holds none."""
        try:
            text = self.job_path.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"{self.job_path} can't be read ({error.strerror}): is {self.path} a run folder?") from error
        except UnicodeDecodeError as error:
            raise RunError(f"{self.job_path} is damaged ({error.reason}): restore it, or start a new run.") from error
        return job_from_json(text, self.job_path)

    def refuse_newer_job(self) -> None:
        """RunError if the folder was written by a newer version; a job that can't be read at all may be replaced."""
        try:
            schema = json.loads(self.job_path.read_text(encoding="utf-8")).get("schema")
        except (OSError, ValueError, AttributeError):
            return
        if isinstance(schema, int) and schema > SCHEMA:
            raise newer_schema(self.job_path, schema)

    def write_job(self, job: Job) -> None:
        """Write the job, atomically."""
        write_atomic(self.job_path, lambda file: file.write(job_to_json(job).encode()))

    def finished_lora(self, steps: int) -> Path | None:
        """The LoRA of this run if it was finished at `steps` steps and the file is still there."""
        try:
            result = json.loads(self.result_path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        lora = self.path / Path(str(result.get("lora", ""))).name  # of the run's own: the file may be a stranger's
        return lora if result.get("step") == steps and lora.is_file() else None

    def write_result(self, *, step: int, lora: Path) -> None:
        """Mark the run as finished."""
        text = json.dumps({"step": step, "lora": lora.name}) + "\n"
        write_atomic(self.result_path, lambda file: file.write(text.encode()))

    def write_workflow(self, *, workflow: dict | None, prompt: dict | None) -> None:
        """Keep the graph that started the run."""
        text = json.dumps({"workflow": workflow, "prompt": prompt})
        write_atomic(self.workflow_path, lambda file: file.write(text.encode()))

    def read_workflow(self) -> dict:
        """`workflow` and `prompt` of the graph that started the run; None where there was none."""
        try:
            kept = json.loads(self.workflow_path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            kept = {}
        return {"workflow": kept.get("workflow"), "prompt": kept.get("prompt")}

    def request_stop(self) -> None:
        """Ask the worker to stop after the step it is in, and to keep a checkpoint."""
        (self.path / STOP_FILE).touch()

    def clear_stop(self) -> None:
        """Forget an earlier request."""
        (self.path / STOP_FILE).unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Whether somebody asked for a stop."""
        return (self.path / STOP_FILE).exists()

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the complete checkpoints, oldest first."""
        found = []
        for folder in self.checkpoints_path.glob("step-*"):
            number = folder.name.removeprefix("step-")
            if number.isdigit() and (folder / "adapter.safetensors").is_file() and (folder / "state.pt").is_file():
                found.append((int(number), folder))
        return sorted(found)

    def save_checkpoint(self, step: int, tensors: dict[str, torch.Tensor], state: dict, *, keep_last: int) -> Path:
        """Write one checkpoint folder in one move, then drop the oldest beyond `keep_last`.

        Raises RunError when the disk refuses; earlier checkpoints are untouched.
        """
        target = self.checkpoints_path / f"step-{step:08d}"
        if target.exists():
            return target
        newest = self.checkpoints()[-1:]
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
        for _, folder in self.checkpoints()[:-keep_last]:
            shutil.rmtree(folder, ignore_errors=True)
        return target

    def load_checkpoint(self, folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
        """Adapter tensors and optimizer state of one checkpoint, on the CPU."""
        return load_file(folder / "adapter.safetensors"), torch.load(folder / "state.pt", weights_only=True)

    def sweep(self) -> None:
        """Remove what an interrupted write left behind."""
        for leftover in self.checkpoints_path.glob(".*.tmp"):
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


def find_run(runs: Path, key: str) -> Path | None:
    """The run folder with this content key, whatever name it was given."""
    for folder in sorted(runs.glob(f"*_{key}")):
        if (folder / "job.json").is_file():
            return folder
    return None

"""A run is a folder: `job.json`, `events.jsonl`, `checkpoints/`, the LoRA. Everything that shows a run reads it."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..disk import write_atomic
from ..errors import RunError
from ..locks import FileLock
from ..moving import remove
from ..safe_json import parse_object, read_object, seal
from ..serial import to_dict
from ..settings.job import SCHEMA, Job, job_from_json, newer_schema
from .checkpoints import Checkpoints
from .result import RESULT, finished_lora, write_result

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
        return self.path / RESULT

    @property
    def scratch_path(self) -> Path:
        """For what may be used again and may be deleted: `cache` beside the folder of runs, or inside a run elsewhere."""
        runs = self.path.parent
        return runs.parent / "cache" if runs.name == "runs" else self.path / "cache"

    @property
    def workflow_path(self) -> Path:
        """The workflow that started the run, to be embedded in the LoRA."""
        return self.path / "workflow.json"

    @property
    def is_there(self) -> bool:
        """Whether the folder holds a run: people delete them, also while they are trained in."""
        return self.job_path.is_file()

    def lock(self) -> FileLock:
        """The lock that the one process training in this folder holds."""
        return FileLock(self.path / ".lock")

    def read_job(self) -> Job:
        """The job; RunError if the folder holds none."""
        try:
            data = self.job_path.read_bytes()
        except OSError as error:
            raise RunError(f"{self.job_path} can't be read ({error.strerror}): is {self.path} a run folder?") from error
        return job_from_json(data, self.job_path)

    def refuse_newer_job(self) -> None:
        """RunError if the folder was written by a newer version; a job that can't be read at all may be replaced."""
        try:  # not its seal, of which a newer version may have another kind
            schema = parse_object(self.job_path.read_bytes(), finite=False).get("schema")
        except (OSError, ValueError):
            return
        if isinstance(schema, int) and schema > SCHEMA:
            raise newer_schema(self.job_path, schema)

    def write_job(self, job: Job) -> None:
        """Write the job, atomically, with the hash of its content."""
        text = json.dumps(seal(to_dict(job)), indent=2) + "\n"
        write_atomic(self.job_path, lambda file: file.write(text.encode()))

    def finished_lora(self, steps: int) -> Path | None:
        """The LoRA of this run, if it was finished at `steps` steps and the file is as it was written."""
        return finished_lora(self.path, steps)

    def write_result(self, *, step: int, lora: Path) -> None:
        """Mark the run as finished."""
        write_result(self.path, step=step, lora=lora)

    def write_workflow(self, *, workflow: dict | None, prompt: dict | None) -> None:
        """Keep the graph that started the run."""
        text = json.dumps(seal({"workflow": workflow, "prompt": prompt}))
        write_atomic(self.workflow_path, lambda file: file.write(text.encode()))

    def read_workflow(self) -> dict:
        """`workflow` and `prompt` of the graph that started the run; None where there was none."""
        kept = read_object(self.workflow_path, finite=False) or {}  # prompts of the host may hold NaN
        return {"workflow": kept.get("workflow"), "prompt": kept.get("prompt")}

    def request_stop(self) -> None:
        """Ask the worker to stop after the step it is in, and to keep a checkpoint. OSError if the disk refuses."""
        (self.path / STOP_FILE).touch()

    def clear_stop(self) -> None:
        """Forget an earlier request."""
        remove(self.path / STOP_FILE)

    def stop_requested(self) -> bool:
        """Whether somebody asked for a stop."""
        return (self.path / STOP_FILE).exists()

    @property
    def checkpoint_store(self) -> Checkpoints:
        """Writes and reads its checkpoints."""
        return Checkpoints(self.checkpoints_path)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the complete checkpoints, oldest first."""
        return self.checkpoint_store.all()


def deleted_message(folder: RunFolder) -> str:
    """What is told when somebody deleted a run folder that was being trained in."""
    return f"the run folder {folder.path} was deleted while it was trained in: start again to begin anew."

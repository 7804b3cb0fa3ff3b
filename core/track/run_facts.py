"""What trackers say of a run, from its job.json as it stands: without captions, paths and model files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..safe_json import as_table, parse_object

_GROUPS = (
    *("adapter", "timesteps", "optimizer", "schedule", "loop", "loss", "ema", "regularizers", "memory"),
    *("tread", "rollout", "crepa"),
)
_PATHS = ("start_from", "merge_into_base", "encoder", "vae")
STAGES = {"high": "high noise", "low": "low noise", "single": "single model", "both": "both experts"}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Name, stage, length and settings of a run."""

    folder: Path
    name: str
    stage: str
    steps: int
    base: str
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """The name with the stage, as people say it."""
        return self.name if self.stage == "single" else f"{self.name}, {STAGES.get(self.stage, self.stage)}"

    @property
    def identity(self) -> str:
        """The same for the same run folder, and for no other."""
        return hashlib.sha256(str(self.folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_facts(folder: Path) -> RunFacts:
    """Of the run in this folder; RunError where there is none."""
    try:
        job = parse_object((folder / "job.json").read_bytes(), finite=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run folder: its job.json can't be read ({error}).") from error
    settings: dict[str, Any] = {}
    for group in _GROUPS:
        for name, value in as_table(job.get(group)).items():
            if name not in _PATHS and isinstance(value, (str, int, float, bool, list)):
                settings[f"{group}.{name}"] = value
    model = as_table(job.get("model"))
    return RunFacts(
        folder=folder,
        name=str(job.get("name", folder.name)),
        stage=str(job.get("stage", "single")),
        steps=int(as_table(job.get("loop")).get("steps", 0)),
        base=str(model.get("label", "")),
        settings={**settings, "precision": model.get("precision", ""), "base": model.get("label", "")},
    )

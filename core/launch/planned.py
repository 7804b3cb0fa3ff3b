"""Which job is trained where, before its worker is started."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..settings.job import Job
from ..settings.track import TrackOptions
from ..train.claim import Claim, claim_folder, claim_run
from ..train.find_run import find_run
from ..train.run_folder import RunFolder


@dataclass(frozen=True)
class Planned:
    """A job and the folder that it is trained in."""

    name: str  # in messages: high, low, or single
    folder: RunFolder
    job: Job
    runs: Path | None = None  # where the folder is chosen among others; None: it is given
    track: TrackOptions = field(default_factory=TrackOptions)  # where else its diary is shown

    def where(self) -> RunFolder:
        """The folder, as things are now: others may have trained meanwhile."""
        return find_run(self.runs, self.job) if self.runs else self.folder

    def claim(self, device: str) -> Claim:
        """Take the folder, and write the job there for a device. InUseError if somebody trains in it."""
        job = replace(self.job, device=device)
        return claim_run(self.runs, job) if self.runs else claim_folder(self.folder, job)


def auto_devices() -> list[str]:
    """What `auto` may choose from: every GPU, or the CPU where there is none."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]

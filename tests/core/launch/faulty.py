"""An optimizer that goes wrong on one rank of a run, the first time that the run is started; or waits for a test."""

import time
from dataclasses import replace
from pathlib import Path

from wan_train.core.settings.job import Job

_TEXT = """import os
import threading
import time
from pathlib import Path

import torch


class AdamW(torch.optim.AdamW):
    updates = 0

    def step(self, *args, **options):
        is_of_a_lora = len(self.param_groups[0]["params"]) > 8  # and not of the trial before the run
        self.updates += is_of_a_lora
        met = Path(__file__).with_suffix(".met")
        if is_of_a_lora and os.environ.get("RANK", "0") == "{rank}" and self.updates == {update} and not met.exists():
            met.touch()
            {act}
        return super().step(*args, **options)
"""


def write_faulty(folder: Path, name: str, *, update: int, act: str, rank: int = 1) -> dict[str, str]:
    """`name`.AdamW in `folder`, which does `act` in this update of `rank`; the environment in which a run finds it."""
    (folder / f"{name}.py").write_text(_TEXT.format(update=update, act=act, rank=rank), encoding="utf-8")
    return {"WANTRAIN_OPTIMIZERS": name, "PYTHONPATH": str(folder)}


class Gate:
    """Where a run of one process stops within an update until the test lets it go on, or kills it.

    So a test does something to a run that is under way, however fast that is. One that is started again goes on.
    """

    def __init__(self, folder: Path, *, update: int) -> None:
        folder.mkdir(exist_ok=True)
        self._reached, self._open = folder / "gate.met", folder / "gate.open"
        act = 'while not met.with_suffix(".open").exists(): time.sleep(0.01)'
        self.environment = write_faulty(folder, "gate", update=update, act=act, rank=0)

    def on_the_way_of(self, job: Job) -> Job:
        """The job with the optimizer that stops."""
        return replace(job, optimizer=replace(job.optimizer, name="custom", path="gate.AdamW"))

    def await_run(self, seconds: float = 300.0) -> None:
        """Until the run is there."""
        end = time.monotonic() + seconds
        while not self._reached.exists():
            assert time.monotonic() < end, "the run did not come so far"
            time.sleep(0.02)

    def open(self) -> None:
        """Let the run go on, now or when it comes."""
        self._open.touch()

"""An optimizer that goes wrong on one rank of a run, the first time that the run is started."""

from pathlib import Path

_TEXT = """import os
import threading
from pathlib import Path

import torch


class AdamW(torch.optim.AdamW):
    updates = 0

    def step(self, *args, **options):
        is_of_a_lora = len(self.param_groups[0]["params"]) > 8  # and not of the trial before the run
        self.updates += is_of_a_lora
        met = Path(__file__).with_suffix(".met")
        if is_of_a_lora and os.environ["RANK"] == "1" and self.updates == {update} and not met.exists():
            met.touch()
            {act}
        return super().step(*args, **options)
"""


def write_faulty(folder: Path, name: str, *, update: int, act: str) -> dict[str, str]:
    """`name`.AdamW in `folder`, which does `act` in this update of rank 1; the environment in which a run finds it."""
    (folder / f"{name}.py").write_text(_TEXT.format(update=update, act=act), encoding="utf-8")
    return {"WANTRAIN_OPTIMIZERS": name, "PYTHONPATH": str(folder)}

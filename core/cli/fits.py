"""What a model's training would take on this machine, as the planner of every run predicts it: for `wantrain doctor`."""

from pathlib import Path

import torch

from ..facts import latent_shape
from ..plan.advice import explain, what_would_fit
from ..plan.card import Card
from ..plan.plan import Bucket, Plan, Task
from ..plan.planner import Planner
from ..plan.planning import stored_block_bytes
from ..wan.checkpoint import inspect

CLIPS = ((1024, 1024, 1), (832, 480, 33), (832, 480, 81))  # width, height, frames
STEPS = 1000


def what_fits(path: Path, card: Card, *, compiled: bool) -> list[str]:
    """A line for each of CLIPS in bf16, and in fp8 where that is smaller: the plan of a default LoRA, or what would fit.

    `card` is a GPU as `measure_card` finds it. ModelFileError for a file that is no Wan model.
    """
    info = inspect(path)
    stored = stored_block_bytes(info, torch.bfloat16)  # a GGUF file stays as it is
    lines = []
    for precision in ("bf16",) if stored else ("bf16", "fp8"):
        for width, height, frames in CLIPS:
            shape = latent_shape(info.config.out_dim, frames, height, width)
            planner = Planner(
                task=Task(sizes=info.config, stored_block_bytes=stored),
                buckets=[Bucket(shape)],
                card=card,
                plan=Plan(precision=precision, compile="kernels" if compiled else "off"),
            )
            choice = planner.choose()
            lines.append(explain(planner, choice, steps=STEPS) if choice else what_would_fit(planner))
    return lines

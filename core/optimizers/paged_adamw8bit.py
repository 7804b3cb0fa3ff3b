"""AdamW with moments of 8 bits, in pages that may wait in main memory: bitsandbytes'."""

import torch

from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._bitsandbytes import betas, build


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return build("AdamW8bit", parameters, options, paged=True, betas=betas(options), eps=options.eps)


METHOD = OptimizerMethod(
    help="adamw8bit whose moments the driver moves to main memory where the GPU is full (Linux)",
    build=_build,
    state_bytes=2,
    state={"state1": None, "state2": None},  # small parameters have them in fp32
    more_state=None,  # of the quantization, which versions of bitsandbytes name as they like
    waits=True,
    packages=("bitsandbytes",),
    uses=(
        "beta1",
        "beta2",
        "eps",
    ),
)

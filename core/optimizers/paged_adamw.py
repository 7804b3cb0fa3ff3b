"""AdamW whose moments lie in pages that may wait in main memory: bitsandbytes'."""

import torch

from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._bitsandbytes import betas, build


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return build("AdamW", parameters, options, paged=True, betas=betas(options), eps=options.eps)


METHOD = OptimizerMethod(
    help="adamw whose moments the driver moves to main memory where the GPU is full;"
    " adamw with offload_optimizer does the same without bitsandbytes, and by plan",
    build=_build,
    state_bytes=8,
    state={"state1": torch.float32, "state2": torch.float32},
    more_state=None,  # of the quantization, which versions of bitsandbytes name as they like
    waits=True,
    packages=("bitsandbytes",),
    uses=(
        "beta1",
        "beta2",
        "eps",
    ),
)

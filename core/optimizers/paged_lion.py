"""Lion whose moment lies in pages that may wait in main memory: bitsandbytes'."""

import torch

from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._bitsandbytes import betas, build


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return build("Lion", parameters, options, paged=True, betas=betas(options))


METHOD = OptimizerMethod(
    help="lion whose moment the driver moves to main memory where the GPU is full (Linux); needs bitsandbytes",
    build=_build,
    state_bytes=4,
    state={"state1": torch.float32},
    more_state=None,  # of the quantization, which versions of bitsandbytes name as they like
    waits=True,
    packages=("bitsandbytes",),
    uses=(
        "beta1",
        "beta2",
    ),
)

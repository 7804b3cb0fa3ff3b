"""Lion (Chen et al., 2023, arXiv:2302.06675) with a moment of 8 bits: bitsandbytes'."""

import torch

from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._bitsandbytes import betas, build


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return build("Lion8bit", parameters, options, betas=betas(options))


METHOD = OptimizerMethod(
    help="lion with its moment in 8 bits; needs the package bitsandbytes",
    build=_build,
    state_bytes=1,
    state={"state1": None},  # small parameters have them in fp32
    more_state=None,  # of the quantization, which versions of bitsandbytes name as they like
    packages=("bitsandbytes",),
    uses=(
        "beta1",
        "beta2",
    ),
)

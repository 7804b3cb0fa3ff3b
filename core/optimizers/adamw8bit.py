"""AdamW with moments of 8 bits, quantized in blocks (Dettmers et al., 2022, arXiv:2110.02861): bitsandbytes'."""

import torch

from ..packages import unusable
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("bitsandbytes", error) from error
    return AdamW8bit(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )


METHOD = OptimizerMethod(
    help="AdamW with two moments of 8 bits: a quarter of the memory; needs the package bitsandbytes",
    build=_build,
    state_bytes=2,
    state={"state1": None, "state2": None},  # small parameters have them in fp32
    more_state=None,  # of the quantization, which versions of bitsandbytes name as they like
    packages=("bitsandbytes",),
)

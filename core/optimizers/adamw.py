"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101): torch's, whose moments may wait in main memory."""

import torch

from ..memory.adamw import AdamW
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """One kernel for all parameters where torch has it; elsewhere torch chooses."""
    return AdamW(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True if parameters[0].device.type in ("cuda", "cpu") else None,
    )


METHOD = OptimizerMethod(
    help="AdamW with two fp32 moments, which can wait in main memory",
    build=_build,
    state_bytes=8,
    state={"exp_avg": torch.float32, "exp_avg_sq": torch.float32},
    more_state=("step",),
    can_offload=True,
    skips_bad_steps=True,  # by fused kernels
)

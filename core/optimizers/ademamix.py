"""AdEMAMix (Pagliardini et al., 2024, arXiv:2409.03137): bitsandbytes'.

AdamW with a second, slow mean of the gradients, which is added to the fast one with the factor alpha.
"""

import torch

from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._ademamix import ARGUMENTS, build


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    return build("AdEMAMix", parameters, options)


METHOD = OptimizerMethod(
    help="adamw with a second, slow mean of the gradients; needs the package bitsandbytes",
    build=_build,
    state_bytes=12,  # two means and the mean square
    state={"state2": torch.float32},
    more_state=None,  # state1, which is both means, and what bitsandbytes keeps of the quantization
    packages=("bitsandbytes",),
    uses=("beta1", "beta2", "eps", "args"),
    arguments=tuple(ARGUMENTS.rules),
    problem=ARGUMENTS.problem,
)

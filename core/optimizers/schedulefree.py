"""Schedule-free AdamW (Defazio et al., 2024, arXiv:2405.15682): schedulefree's.

Gradients are taken at y, a mix of z, which AdamW moves, and x, the mean of all z so far. x is the weights to use: what is
validated, shown and saved. It takes the place of a schedule that falls.
"""

import torch

from ..packages import unusable
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._arguments import Arguments, number

_ARGUMENTS = Arguments(
    {"r": number(least=0), "weight_lr_power": number(least=0)}
)  # 0 and 2: how much late steps count in the mean, and how much the rate does


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    try:
        from schedulefree.adamw_schedulefree import AdamWScheduleFree
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("schedulefree", error) from error
    optimizer = AdamWScheduleFree(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        **_ARGUMENTS.given(options),
    )
    optimizer.train()
    return optimizer


def _problem(options: OptimizerOptions) -> str:
    if not options.beta1:
        return "the optimizer schedulefree needs a beta1 above 0, which mixes its two sets of weights: 0.9 is usual."
    return _ARGUMENTS.problem(options)


METHOD = OptimizerMethod(
    help="adamw that averages its weights in place of a falling schedule; leave lr_schedule constant, and use warmup_steps;"
    " needs the package schedulefree",
    build=_build,
    state_bytes=8,
    update_bytes=4,
    state={"z": torch.float32, "exp_avg_sq": torch.float32},
    group_state=("k", "weight_sum", "lr_max", "scheduled_lr"),
    averages=True,
    packages=("schedulefree",),
    uses=("beta1", "beta2", "eps", "args"),
    arguments=tuple(_ARGUMENTS.rules),
    problem=_problem,
)

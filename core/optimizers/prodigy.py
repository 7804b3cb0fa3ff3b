"""Prodigy (Mishchenko and Defazio, 2023, arXiv:2306.06101): AdamW that finds its learning rate; prodigyopt's.

The rate is an estimate of how far the weights have to go, d, which only grows; `learning_rate` is a factor on it.
"""

import contextlib
import io
from typing import Any

import torch

from ..packages import unusable
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._arguments import FLAG, Arguments, number, whole

_ARGUMENTS = Arguments(
    {
        "beta3": number(least=0, below=1),
        "d0": number(above=0),
        "d_coef": number(above=0),
        "growth_rate": number(least=1),
        "safeguard_warmup": FLAG,
        "slice_p": whole(1),
        "use_bias_correction": FLAG,
    }
)
_LEAST_USUAL = 0.1  # below that a learning_rate is that of another optimizer


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    try:
        from prodigyopt import Prodigy
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("prodigyopt", error) from error
    made: Any = Prodigy  # whose types say that a weight decay is whole
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a sentence
        return made(
            parameters,
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            **_ARGUMENTS.given(options),
        )


def _advice(options: OptimizerOptions) -> str:
    if options.learning_rate >= _LEAST_USUAL:
        return ""
    return (
        f"the optimizer prodigy finds the learning rate itself, and learning_rate is a factor on it: {options.learning_rate:g} "
        "makes it that much lower; 1 is usual."
    )


METHOD = OptimizerMethod(
    help="adamw that finds its learning rate: set learning_rate to 1; needs the package prodigyopt",
    build=_build,
    state_bytes=16,  # a matrix that is 0 at the start, such as B, takes 12
    state={"exp_avg": torch.float32, "exp_avg_sq": torch.float32},
    more_state=("step", "s", "p0"),
    group_state=("k", "d", "d_max", "d_numerator", "d_denom", "d_hat"),
    waits=True,  # d is computed on the host
    is_one_rate=True,
    packages=("prodigyopt",),
    uses=("beta1", "beta2", "eps", "args"),
    arguments=tuple(_ARGUMENTS.rules),
    problem=_ARGUMENTS.problem,
    advice=_advice,
)

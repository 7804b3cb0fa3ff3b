"""Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235) at the given learning rate: transformers'.

The mean square of each gradient is kept as one number for each row and each column. The update is not scaled by the size
of the parameter, for a LoRA's B is 0 at the start, and would hardly move.
"""

from typing import Any

import torch

from ..packages import unusable
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._arguments import Arguments, number

_ARGUMENTS = Arguments({"clip_threshold": number(above=0), "decay_rate": number(least=-1, below=0)})  # 1.0 and -0.8


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    try:
        from transformers.optimization import Adafactor
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("transformers", error) from error
    made: Any = Adafactor  # whose types say that None is no learning rate
    return made(
        parameters,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        **_ARGUMENTS.given(options),
    )


METHOD = OptimizerMethod(
    help="hardly any state: a number for each row and column; learning_rate as for adamw or a few times it",
    build=_build,
    state_bytes=0,
    edge_bytes=4,
    more_state=None,  # rows and columns of a matrix, all of a vector
    packages=("transformers",),
    uses=("args",),
    arguments=tuple(_ARGUMENTS.rules),
    problem=_ARGUMENTS.problem,
)

"""What both forms of AdEMAMix share."""

import torch

from ..settings.optimizer import OptimizerOptions
from . import _bitsandbytes as of_bitsandbytes
from ._arguments import Arguments, number, whole

# Factor of the slow mean and its decay, 5 and 0.9999, and the steps over which they rise to that.
ARGUMENTS = Arguments(
    {"alpha": number(least=0), "beta3": number(least=0, below=1), "t_alpha": whole(1), "t_beta3": whole(1)}
)
_BETA3 = 0.9999


def build(name: str, parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """The class `name` of bitsandbytes; ConfigError for arguments that it does not take."""
    given = ARGUMENTS.given(options)
    betas = (options.beta1, options.beta2, given.pop("beta3", _BETA3))
    return of_bitsandbytes.build(name, parameters, options, betas=betas, eps=options.eps, **given)

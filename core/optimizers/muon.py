"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon), with the update's size as AdamW's (Liu et al., 2025,
arXiv:2502.16982): torch's.

The momentum of each matrix, brought near to U V^T of its singular value decomposition, is the direction of its update: all
directions in the matrix learn at one pace. A LoRA's A [r, in] and B [out, r] are such matrices, each for itself: the update of
B A is not orthogonal, but no direction of A or B is left behind. Its root mean square is 0.2 times the learning rate, at
max(rows, columns) numbers in each of the r directions.
"""

import torch

from ..errors import ConfigError
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._arguments import FLAG, Arguments, whole

_ARGUMENTS = Arguments({"nesterov": FLAG, "ns_steps": whole(1, 99)})
_ADVICE = "choose adamw, or install a newer PyTorch as the ComfyUI manual describes."


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    if problem := _problem(options):
        raise ConfigError(problem)
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    if others:
        are = "is" if len(others) == 1 else "are"
        raise ConfigError(
            f"the optimizer muon trains matrices alone, and {len(others)} of the adapter's {len(parameters)} tensors {are} "
            "none: choose another optimizer, or the adapter lora."
        )
    return torch.optim.Muon(
        parameters,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        momentum=options.beta1,
        adjust_lr_fn="match_rms_adamw",
        **_ARGUMENTS.given(options),
    )


def _problem(options: OptimizerOptions) -> str:
    if not hasattr(torch.optim, "Muon"):
        return f"the optimizer muon needs PyTorch 2.9 or newer, and this is {torch.__version__}: {_ADVICE}"
    return _ARGUMENTS.problem(options)


METHOD = OptimizerMethod(
    help="makes all directions of A, and of B, learn at one pace; adamw's learning_rate, and beta1 0.95; needs PyTorch 2.9",
    build=_build,
    state_bytes=4,
    state={"momentum_buffer": torch.float32},
    uses=("beta1", "args"),
    arguments=tuple(_ARGUMENTS.rules),
    is_for_matrices=True,
    problem=_problem,
)

"""Any optimizer of an installed package, by its import path: torch.optim.SGD, pytorch_optimizer.Ranger.

To import a package is to run its code, and the path may stand in a job, a recipe or a workflow of somebody else. So beside
those of torch itself, packages must be named in an environment variable of the machine.
"""

import copy
import functools
import importlib
import io
import os
from typing import Any

import torch

from ..errors import ConfigError
from ..paths import shown
from ..settings.optimizer import OptimizerOptions
from . import OptimizerMethod
from ._arguments import arguments_of, read_arguments

ALLOWED = "WANTRAIN_OPTIMIZERS"  # packages whose optimizers may be used on this machine, with commas between
_OF_TORCH = "torch.optim."
_OF_OPTIONS = ("lr", "weight_decay")  # which have options of their own
_TRIAL_SHAPES = ((8, 64), (64, 8))  # of a LoRA's A and B


def _build(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    made = _find_class(options.path)
    optimizer = _make(made, parameters, options)
    if _averages(made):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _averages(made: Any) -> bool:
    """Whether the weights to use are not those in training, as with the classes of the package schedulefree."""
    return all(callable(getattr(made, name, None)) for name in ("train", "eval"))


def _find_class(path: str) -> Any:
    """ConfigError for what may not be imported, or is no optimizer."""
    module, _, name = path.rpartition(".")
    what = f"optimizer_class is '{shown(path)}'"
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"{what}: name a class as package.module.Class, such as torch.optim.SGD.")
    package = path.split(".")[0]
    if not path.startswith(_OF_TORCH) and package not in _allowed():
        raise ConfigError(
            f"{what}, and the package {package} is not among those whose optimizers may run on this machine. If you trust it, "
            f"set the environment variable {ALLOWED} to {package} (several: with commas between), and start again."
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the package raises
        raise ConfigError(
            f"{what}, which can't be imported ({_first_line(error)}): check the name and the package."
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"{what}, which is no class of optimizers (torch.optim.Optimizer): name one that is.")
    return found


def _allowed() -> set[str]:
    return {name.strip() for name in os.environ.get(ALLOWED, "").split(",")} - {""}


def _make(found: Any, parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """An optimizer of the class; ConfigError for arguments that it does not take."""
    names = arguments_of(found)
    given = read_arguments(options.args, [name for name in names if name not in _OF_OPTIONS], options.path)
    if "weight_decay" in names:
        given["weight_decay"] = options.weight_decay
    try:
        return found(parameters, lr=options.learning_rate, **given)
    except Exception as error:
        raise ConfigError(
            f"optimizer_class {options.path} can't be used with optimizer_args '{shown(options.args)}' ({_first_line(error)}): "
            "correct them, or choose another class."
        ) from error


@functools.lru_cache(maxsize=8)
def _try(options: OptimizerOptions, _allowed_now: str) -> int:
    """Bytes of state for each parameter, of two updates of a small LoRA and a resume; ConfigError if that fails."""
    parameters = [
        torch.nn.Parameter(torch.linspace(-1, 1, rows * columns).view(rows, columns)) for rows, columns in _TRIAL_SHAPES
    ]
    optimizer = _build(parameters, options)
    try:
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = parameter.detach().clone()
            optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        _build(parameters, options).load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise ConfigError(
            f"optimizer_class is '{shown(options.path)}', whose update, or whose state in a checkpoint, fails in a trial "
            f"({_first_line(error)}): choose another."
        ) from error
    tensors = _tensors(list(optimizer.state.values()))
    return -(-sum(tensor.nbytes for tensor in tensors) // sum(parameter.numel() for parameter in parameters))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.ndim else []
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for inner in values for tensor in _tensors(inner)]


def _state_bytes(options: OptimizerOptions) -> int:
    return _try(options, os.environ.get(ALLOWED, ""))


def _problem(options: OptimizerOptions) -> str:
    if not options.path:
        return "the optimizer is custom, but optimizer_class is empty: name the class, such as torch.optim.SGD."
    try:
        _state_bytes(options)
    except ConfigError as error:
        return str(error)
    return ""


def _advice(options: OptimizerOptions) -> str:
    if not options.weight_decay or _problem(options) or "weight_decay" in arguments_of(_find_class(options.path)):
        return ""
    return f"weight_decay has no effect: the class {options.path} takes none."


def _first_line(error: BaseException) -> str:
    return shown((str(error).splitlines() or [type(error).__name__])[0], 200).rstrip(".")


METHOD = OptimizerMethod(
    help="any class of an installed package, which optimizer_class names, with optimizer_args",
    build=_build,
    state_bytes=_state_bytes,
    update_bytes=8,
    more_state=None,
    group_state=None,
    uses=("args", "path"),
    averages=lambda options: _averages(_find_class(options.path)),
    problem=_problem,
    advice=_advice,
)

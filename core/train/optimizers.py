"""The optimizer table, the update that a bad gradient cannot reach, and resuming."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..memory.adamw import AdamW
from ..packages import unusable
from ..settings.optimizer import OptimizerOptions

_MOMENTS = ("exp_avg", "exp_avg_sq")
_QUANTIZED = ("state1", "state2")  # of bitsandbytes


def _adamw(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """One kernel for all parameters where torch has it; elsewhere torch chooses."""
    return AdamW(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True if parameters[0].device.type in ("cuda", "cpu") else None,
    )


def _adamw8bit(parameters: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
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


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter], OptimizerOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}


def build_optimizer(parameters: Iterable[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, by name."""
    return OPTIMIZERS[options.name](list(parameters), options)


def update_if(finite: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The update, unless `finite` (one bool on the parameters' device) says no; the host does not wait for it.

    torch's fused kernels then leave weights and state as they are. For the others the gradients become 0, which keeps
    weights and state finite.
    """
    bad = ~finite
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
    else:
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad.masked_fill_(bad, 0.0)
    optimizer.step()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict` of the same optimizer gave; constants and the choice of kernels stay those of now."""
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """ValueError if `state` is not what `state_dict` of the same optimizer over the same parameters can give."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state, dict) or not isinstance(found := state.get("state"), dict):
        raise ValueError("the optimizer's state is no table of parameters")
    for index, values in found.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(values, dict):
            raise ValueError(f"the optimizer's state is for a parameter {index!r}, and there are {len(parameters)}")
        if isinstance(optimizer, AdamW) and values.keys() != {"step", *_MOMENTS}:
            raise ValueError(f"the optimizer's state of parameter {index} has {', '.join(map(str, values))}")
        for name, value in values.items():
            _check_value(index, name, value, parameters[index])


def _check_value(index: int, name: str, value: Any, parameter: torch.Tensor) -> None:
    what = f"the optimizer's {name} of parameter {index}"
    if name == "step" and not (float(value) >= 0 and float(value).is_integer()):
        raise ValueError(f"{what} is {value}, which is no number of updates")
    if name in (*_MOMENTS, *_QUANTIZED) and (not isinstance(value, torch.Tensor) or value.shape != parameter.shape):
        raise ValueError(f"{what} has not the parameter's shape {list(parameter.shape)}")
    if name in _MOMENTS and value.dtype != torch.float32:
        raise ValueError(f"{what} has {value.dtype} numbers instead of float32 ones")
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{what} has numbers that are not finite")

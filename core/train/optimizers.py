"""Building an optimizer, the update that a bad gradient cannot reach, and resuming."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..optimizers import OPTIMIZERS, OptimizerMethod
from ..settings.optimizer import OptimizerOptions
from ..torch_compat import foreach_add_, foreach_mul, foreach_mul_

Undo = Callable[[], None]


def build_optimizer(parameters: Iterable[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer of the options; ConfigError for a name that is not known, or a package that is missing."""
    return OPTIMIZERS.get(options.name).build(list(parameters), options)


def update_if(good: Tensor, optimizer: torch.optim.Optimizer) -> Undo:
    """The update, unless `good` (one bool on the parameters' device) says no; the host does not wait for it.

    Without it, weights and state stay as they were, to the bit. There are three ways:
    - torch's fused kernels look at `found_inf` and leave everything alone, at no cost.
    - An optimizer of ours whose class has `skips_bad_steps = True` looks at `found_inf` itself, given gradients that are
      finite.
    - For any other, weights and state are copied before the update and put back where it was bad: for the length of the
      update this takes as much memory as both have (6 bytes a parameter with moments of 8 bits, which is less than the
      step's activations took before), and one more pass over them.

    What is returned is to be called once the host knows that the update was not made, which matters to the third way alone:
    it takes back what the host has counted meanwhile. Nothing is changed where memory runs out in here.
    """
    bad = ~good
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
        optimizer.step()
        return _nothing
    kept = None if getattr(optimizer, "skips_bad_steps", False) else _Kept(optimizer)
    for parameter in _parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad.masked_fill_(bad, 0.0)
    if kept is None:
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        return _nothing
    optimizer.step()
    kept.put_back(bad)
    return kept.undo


def _nothing() -> None:
    pass


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class _Kept:
    """Copies of an optimizer's weights and state on their device, and what it has counted on the host."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        weights = _parameters(optimizer)
        self._device = weights[0].device
        states = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [weight.detach() for weight in weights]
        tensors += [value for value in states if isinstance(value, Tensor) and value.device == self._device]
        # By dtype, and each once: bitsandbytes has one table of its codes in the state of every parameter.
        self._tensors: dict[torch.dtype, list[Tensor]] = {}
        for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values():
            self._tensors.setdefault(tensor.dtype, []).append(tensor)
        self._copies = {dtype: foreach_mul(found, 1) for dtype, found in self._tensors.items()}
        self._known, self._counts = set(optimizer.state), self._count()

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Where `bad`: everything as it was. Needs no memory, and no number that is not finite may be there.

        x * 1 + copy * 0, or the other way round, is exact. A state that the update made is left to `undo`.
        """
        for dtype, tensors in self._tensors.items():
            copies = self._copies[dtype]
            foreach_mul_(tensors, (~bad).to(dtype))
            foreach_mul_(copies, bad.to(dtype))
            foreach_add_(tensors, copies)
        self._copies.clear()
        before = self._counts
        self._added = {key: number - before.get(key, 0) for key, number in self._count().items()}

    def undo(self) -> None:
        """Take back what the update has counted on the host, and forget the state that it made."""
        for (parameter, name), number in self._added.items():
            self._optimizer.state[parameter][name] -= number
        for parameter in set(self._optimizer.state) - self._known:
            del self._optimizer.state[parameter]

    def _count(self) -> dict[tuple[Tensor, str], Any]:
        """Numbers of the state that are not on the device: how many updates were made."""
        found: dict[tuple[Tensor, str], Any] = {}
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.device != self._device:
                    found[parameter, name] = value.clone()
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[parameter, name] = value
        return found


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict` of the same optimizer gave; constants and the choice of kernels stay those of now."""
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer_state(method: OptimizerMethod, optimizer: torch.optim.Optimizer, state: Any) -> None:
    """ValueError if `state` is not what `state_dict` of the same optimizer over the same parameters can give."""
    parameters = _parameters(optimizer)
    if not isinstance(state, dict) or not isinstance(found := state.get("state"), dict):
        raise ValueError("the optimizer's state is no table of parameters")
    for index, values in found.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(values, dict):
            raise ValueError(f"the optimizer's state is for a parameter {index!r}, and there are {len(parameters)}")
        values = _flat(values)
        names = values.keys() if method.more_state is None else {*method.state, *method.more_state}
        if values.keys() != names or not method.state.keys() <= values.keys():
            raise ValueError(f"the optimizer's state of parameter {index} has {', '.join(map(str, values))}")
        for name, value in values.items():
            _check_value(method, f"the optimizer's {name} of parameter {index}", name, value, parameters[index])


def _flat(values: dict[Any, Any]) -> dict[Any, Any]:
    """Newer versions of bitsandbytes put what is quantized into a table within the state."""
    inner = [value for value in values.values() if isinstance(value, dict)]
    found = {name: value for name, value in values.items() if not isinstance(value, dict)}
    for table in inner:
        found |= table
    return found


def _check_value(method: OptimizerMethod, what: str, name: str, value: Any, parameter: Tensor) -> None:
    if name == "step" and not (float(value) >= 0 and float(value).is_integer()):
        raise ValueError(f"{what} is {value}, which is no number of updates")
    if name in method.state:
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            raise ValueError(f"{what} has not the parameter's shape {list(parameter.shape)}")
        dtype = method.state[name]
        if dtype is not None and value.dtype != dtype:
            raise ValueError(f"{what} has {_short(value.dtype)} numbers instead of {_short(dtype)} ones")
    if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{what} has numbers that are not finite")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

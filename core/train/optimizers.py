"""Building an optimizer, the update that a bad gradient cannot reach, and resuming."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..optimizers import OPTIMIZERS, OptimizerMethod
from ..settings.optimizer import OptimizerOptions
from ..torch_compat import foreach_add_, foreach_mul, foreach_mul_

Undo = Callable[[], None]
# In an optimizer's groups, and not its state: what the run decides, and how it is computed.
_OWN = ("lr", "rate_ratio", "foreach", "fused", "capturable", "differentiable", "maximize")


RATE = "rate_ratio"  # of a parameter group: its learning rate, in multiples of the run's


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], options: OptimizerOptions, *, ups: Iterable[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of the options; ConfigError for a name that is not known, or a package that is missing.

    `ups`: those of the parameters that LoRA+ (Hayou et al., 2024, arXiv:2402.12354) gives a learning rate of their own.
    """
    method, all_of_them = OPTIMIZERS.get(options.name), list(parameters)
    optimizer = method.build(all_of_them, options)
    optimizer.waits = method.waits  # type: ignore[attr-defined]
    apart = {id(parameter) for parameter in ups} if options.lora_plus != 1.0 else set[int]()
    if options.lora_plus != 1.0 and not apart:
        raise ConfigError(
            f"lora_plus_ratio is {options.lora_plus:g}, but this adapter has no second matrix (B) that it could be for: set "
            "lora_plus_ratio to 1."
        )
    if apart:
        (group,) = optimizer.param_groups
        other = {**group, "params": [p for p in all_of_them if id(p) in apart], RATE: options.lora_plus}
        group["params"] = [p for p in all_of_them if id(p) not in apart]
        optimizer.param_groups[:] = [group, other] if group["params"] else [other]
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of all groups; those that LoRA+ made have a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(RATE, 1.0)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], options: OptimizerOptions) -> Tensor:
    """Clip the gradients in place, as the options have it; their norm before, on the device."""
    limit = options.max_grad_norm or math.inf
    if options.clip_by == "norm" or limit == math.inf:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf)
    torch.nn.utils.clip_grad_value_(parameters, limit)
    return norm


def update_if(good: Tensor, optimizer: torch.optim.Optimizer) -> Undo:
    """The update, unless `good` (one bool on the parameters' device) says no; the host does not wait for it.

    Without it, weights and state stay as they were, to the bit. There are four ways:
    - torch's fused kernels look at `found_inf` and leave everything alone, at no cost.
    - An optimizer of ours whose class has `skips_bad_steps = True` looks at `found_inf` itself, given gradients that are
      finite.
    - For any other, weights and state are copied before the update and put back where it was bad: for the length of the
      update this takes as much memory as both have (6 bytes a parameter with moments of 8 bits, which is less than the
      step's activations took before), and one more pass over them.

    - One that waits for the device in each update, as its `waits` says, is not asked for an update that is bad: the host
      looks first.

    What is returned is to be called once the host knows that the update was not made, which matters to the third way alone:
    it takes back what the host has counted meanwhile. Nothing is changed where memory runs out in here.
    """
    if getattr(optimizer, "waits", False):
        if bool(good):
            optimizer.step()
        return _nothing
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
        self._device = _parameters(optimizer)[0].device
        self._known = {parameter for parameter, state in optimizer.state.items() if state}
        self._counts, self._groups = self._count(), _numbers_of_groups(optimizer)
        # Each once: bitsandbytes has one table of its codes in the state of every parameter.
        once = {tensor.data_ptr(): (place, tensor) for place, tensor in self._on_device().items()}
        self._places = [place for place, _ in once.values()]
        by_dtype = _by_dtype(tensor for _, tensor in once.values())
        self._copies = {dtype: foreach_mul(found, 1) for dtype, found in by_dtype.items()}

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Where `bad`: everything as it was. Needs no memory, and no number that is not finite may be there.

        x * 1 + copy * 0, or the other way round, is exact. A state that the update made is left to `undo`.
        """
        now = self._on_device()  # an optimizer may have put other tensors in the place of those that there were
        for dtype, tensors in _by_dtype(now[place] for place in self._places).items():
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
        for group, numbers in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(numbers)

    def _on_device(self) -> dict[Any, Tensor]:
        """Weights, and the state that there was before the update, by their places."""
        found: dict[Any, Tensor] = {(p, ""): p.detach() for p in _parameters(self._optimizer)}
        for parameter, state in self._optimizer.state.items():
            if parameter in self._known:
                found |= {(parameter, *place): tensor for place, tensor in _tensors_in(state, self._device)}
        return {place: tensor for place, tensor in found.items() if tensor.numel()}

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


def _by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    found: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.dtype, []).append(tensor)
    return found


def _tensors_in(
    value: Any, device: torch.device, place: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors on the device within tables and lists, each with its place."""
    if isinstance(value, Tensor):
        if value.device == device:
            yield place, value
    elif isinstance(value, (dict, list, tuple)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors_in(inner, device, (*place, name))


def _numbers_of_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimizer has counted in its groups: numbers, and whether."""
    return [
        {name: value for name, value in group.items() if isinstance(value, (int, float)) and name not in _OWN}
        for group in optimizer.param_groups
    ]


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], *, group_state: Sequence[str] | None = ()
) -> None:
    """Load what `state_dict` of the same optimizer gave; constants and the choice of kernels stay those of now.

    `group_state`: what of its groups is state; None: all numbers in them.
    """
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, state["param_groups"], strict=True):
        names = [name for name in saved if _is_number(saved[name])] if group_state is None else group_state
        group.update({name: saved[name] for name in names if name in saved and name not in _OWN})
    optimizer.load_state_dict({**state, "param_groups": groups})


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
    _check_groups(method, optimizer, state.get("param_groups"))


def _check_groups(method: OptimizerMethod, optimizer: torch.optim.Optimizer, groups: Any) -> None:
    if method.group_state == ():
        return
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise ValueError("the optimizer's state has other groups of parameters")
    for group in groups:
        for name in method.group_state or ():
            value = group.get(name, 0.0)
            if not _is_number(value) or not math.isfinite(value):
                raise ValueError(f"the optimizer's {name} is {value!r}, which is no finite number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


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

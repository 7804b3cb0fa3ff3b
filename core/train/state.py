"""Everything in a run that a checkpoint must hold (adapter, optimizer, averages), in one table by name."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ..adapters.setup import adapter_state, check_adapter, load_adapter
from ..optimizers import OptimizerMethod
from .optimizers import check_optimizer_state, load_optimizer

ADAPTER = "adapter"  # lies in a file of its own, which LoRA tools can read
EMA = "ema"
CREPA = "crepa"  # its projection
ADAPTIVE = "adaptive"  # the weight of output preservation


class Stateful(Protocol):
    """A part of a run that a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, of tensors and plain values."""
        ...

    def check_state(self, state: Any, /) -> None:
        """Raise ValueError or WanTrainError for what `load_state_dict` must not be given; changes nothing."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over a state that was checked."""
        ...


class AdapterWeights:
    """The LoRA on a model."""

    def __init__(self, model: nn.Module):
        self._model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As in a LoRA file."""
        return adapter_state(self._model)

    def check_state(self, state: Any) -> None:
        """Names, shapes, types, alphas, and that all is finite."""
        check_adapter(self._model, state)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """In place."""
        load_adapter(self._model, state)


class OptimizerState:
    """What an optimizer remembers."""

    def __init__(self, method: OptimizerMethod, optimizer: torch.optim.Optimizer):
        self._method, self._optimizer = method, optimizer

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        return self._optimizer.state_dict()

    def check_state(self, state: Any) -> None:
        """Names, shapes, types, and that all is finite."""
        check_optimizer_state(self._method, self._optimizer, state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Without the constants, which stay those of now."""
        load_optimizer(self._optimizer, state, group_state=self._method.group_state)


def stateful_parts(
    model: nn.Module, optimizer: torch.optim.Optimizer, method: OptimizerMethod, **others: Stateful
) -> dict[str, Stateful]:
    """The table. A part that is added here, or given as one of `others`, is kept by every checkpoint from then on."""
    return {ADAPTER: AdapterWeights(model), "optimizer": OptimizerState(method, optimizer), **others}


def collect(parts: Mapping[str, Stateful]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter's tensors, and the state of the other parts by name."""
    states = {name: part.state_dict() for name, part in parts.items()}
    return states.pop(ADAPTER), states


def check(parts: Mapping[str, Stateful], tensors: dict[str, torch.Tensor], states: Mapping[str, Any]) -> None:
    """ValueError or WanTrainError if any part could not take its state; nothing is changed."""
    for name, part in parts.items():
        if name != ADAPTER and name not in states:
            raise ValueError(f"it holds no state of the {name}")
        part.check_state(tensors if name == ADAPTER else states[name])


def restore(parts: Mapping[str, Stateful], tensors: dict[str, torch.Tensor], states: Mapping[str, Any]) -> None:
    """Give every part its state, which was checked."""
    for name, part in parts.items():
        part.load_state_dict(tensors if name == ADAPTER else states[name])

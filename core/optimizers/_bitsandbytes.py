"""The optimizers of the package bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861): state of 8 bits, or in pages.

Paged state is managed memory: the driver brings it to the GPU as an update needs it, and back to main memory where the GPU
runs out. On a CPU there is nothing to page.
"""

from typing import Any

import torch

from ..packages import unusable
from ..settings.optimizer import OptimizerOptions

_PAGED_STATE = ("state1", "state2")


def build(
    name: str,
    parameters: list[torch.nn.Parameter],
    options: OptimizerOptions,
    *,
    paged: bool = False,
    **constants: Any,
) -> torch.optim.Optimizer:
    """The class `name` with `constants` beside learning rate and weight decay; ConfigError where the package is of no use."""
    try:
        from bitsandbytes import optim
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("bitsandbytes", error) from error
    is_paged = paged and parameters[0].is_cuda
    made: Any = _keeping_pages(getattr(optim, f"Paged{name}")) if is_paged else getattr(optim, name)
    return made(parameters, lr=options.learning_rate, weight_decay=options.weight_decay, **constants)


def betas(options: OptimizerOptions) -> tuple[float, float]:
    """As the package takes them."""
    return options.beta1, options.beta2


def _keeping_pages(paged: type[Any]) -> type[Any]:
    """The class, whose state is in pages also after a resume: the package itself loads it into plain memory."""

    class Paged(paged):
        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for parameter, state in self.state.items():
                for name in _PAGED_STATE:
                    if name in state:
                        fresh = self.get_state_buffer(parameter, dtype=state[name].dtype)
                        torch.cuda.synchronize(parameter.device)  # it is being filled with zeros
                        state[name] = fresh.copy_(state[name])

    Paged.__name__ = paged.__name__
    return Paged

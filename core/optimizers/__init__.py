"""The optimizers: each file is one, with what its state takes, and what of it is checked when a run goes on.

An update that is not to be made must leave weights and state as they were, and the host does not wait to learn of it; see
`core.train.optimizers.update_if` for the three ways to get there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..methods import Methods
from ..settings.optimizer import OptimizerOptions

Build = Callable[[list[torch.nn.Parameter], OptimizerOptions], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class OptimizerMethod:
    """One optimizer."""

    help: str  # a clause for tooltips and documents
    build: Build  # for parameters of one device, in one group
    state_bytes: int  # for each parameter: what the planner counts, and a checkpoint holds
    # Tensors of the state with a parameter's own shape, by name; their dtype, None for one that may differ.
    state: Mapping[str, torch.dtype | None] = field(default_factory=dict)
    more_state: tuple[str, ...] | None = ()  # names of what else is kept of a parameter; None: not known beforehand
    can_offload: bool = False  # whether `build` gives one with `core.memory.adamw.AdamW.offload`
    packages: tuple[str, ...] = ()  # needed beside PyTorch, as `core.packages` knows them
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not


OPTIMIZERS = Methods(OptimizerMethod, "optimizer", "optimizers")

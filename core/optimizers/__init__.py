"""The optimizers: each file is one, with what its state takes, and what of it is checked when a run goes on.

An update that is not to be made must leave weights and state as they were, and the host does not wait to learn of it; see
`core.train.optimizers.update_if` for the ways to get there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..methods import Methods
from ..settings.optimizer import OptimizerOptions

Build = Callable[[list[torch.nn.Parameter], OptimizerOptions], torch.optim.Optimizer]


def _no_problem(_options: OptimizerOptions) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class OptimizerMethod:
    """One optimizer."""

    help: str  # a clause for tooltips and documents
    build: Build  # for parameters of one device, in one group
    # For each parameter: what the planner counts, and a checkpoint holds. Or a function that finds it out.
    state_bytes: int | Callable[[OptimizerOptions], int]
    edge_bytes: int = 0  # further ones for each row and each column of a matrix
    update_bytes: int = 0  # for each parameter: what an update takes for a moment, beside copies for bad steps
    # Tensors of the state with a parameter's own shape, by name; their dtype, None for one that may differ.
    state: Mapping[str, torch.dtype | None] = field(default_factory=dict)
    more_state: tuple[str, ...] | None = ()  # names of what else is kept of a parameter; None: not known beforehand
    group_state: tuple[str, ...] | None = ()  # numbers in its parameter groups that are state; None: all there are
    skips_bad_steps: bool = False  # whether what `build` gives leaves all as it was by itself: see `update_if`
    waits: bool = False  # whether its update waits for the device anyway, so that a bad one need not be begun
    can_offload: bool = False  # whether `build` gives one with `core.memory.adamw.AdamW.offload`
    is_one_rate: bool = False  # whether all parameters must have one learning rate
    is_for_matrices: bool = False  # whether all parameters must be matrices, as those of every adapter are
    # Whether the weights to use are not those in training, between which its `train` and `eval` switch.
    averages: bool | Callable[[OptimizerOptions], bool] = False
    packages: tuple[str, ...] = ()  # needed beside PyTorch, as `core.packages` knows them
    uses: tuple[str, ...] = ()  # options of the group that it looks at, and others of its kind do not
    arguments: tuple[str, ...] = ()  # names that it takes in `optimizer_args`, where that is among `uses`
    problem: Callable[[OptimizerOptions], str] = _no_problem  # why it can't be used so: a sentence, "" if it can
    advice: Callable[[OptimizerOptions], str] = _no_problem  # what is unusual about the options: a sentence, or ""

    def bytes_of(self, options: OptimizerOptions) -> int:
        """Bytes of state for each parameter, with these options."""
        return self.state_bytes if isinstance(self.state_bytes, int) else self.state_bytes(options)

    def averages_with(self, options: OptimizerOptions) -> bool:
        """Whether it averages the weights by itself, with these options."""
        return self.averages if isinstance(self.averages, bool) else self.averages(options)


OPTIMIZERS = Methods(OptimizerMethod, "optimizer", "optimizers")

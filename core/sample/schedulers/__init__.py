"""How the sigmas of a sampling are spaced: each file is ComfyUI's scheduler of its name (comfy/samplers.py), bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...methods import Methods


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """One spacing."""

    help: str  # a clause for tooltips and documents
    sigmas: Callable[[int, float], Tensor]  # steps, shift -> sigmas from noise to data [about steps + 1] float32


SCHEDULERS = Methods(Scheduler, "scheduler", "sample.schedulers")

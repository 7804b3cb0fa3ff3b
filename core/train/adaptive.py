"""Adaptive output preservation: the weight of a term follows how far the term is from what it is to be.

After AkaneTendo25's musubi-tuner (src/musubi_tuner/preservation.py, branch ltx-2, e0e570f, dop_args adaptive_target), with its
constants. There the distance is divided by the size of what the base predicts; here it is the term that the chart shows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..objective.regularizers import OUTPUT_PRESERVATION
from ..objective.terms import Group, Term
from ..settings.job import Job

DECAY = 0.95  # of the running mean of the term
RATE = 0.1  # how fast the weight follows
MOST_STEP = 2.0  # of the weight's logarithm, in one update
RANGE = 100.0  # the weight stays within the chosen one divided by it and times it


class AdaptiveWeight:
    """The weight of one term, on the device: w <- w exp(clip(rate (mean - target) / target)), once an update."""

    def __init__(self, name: str, weight: float, target: float, device: torch.device) -> None:
        self.name, self._target = name, target
        self._least, self._most = weight / RANGE, weight * RANGE
        self._weight = torch.tensor(weight, device=device)
        self._mean = torch.tensor(math.nan, device=device)  # nan: the term was never there

    def weighed(self, terms: Group) -> Sequence[Term]:
        """Terms of a batch, with the weight of now for the one that has this name."""
        return [replace(term, weight=self._weight) if term.name == self.name else term for term in terms]

    def follow(self, found: Tensor | None, was_made: Tensor) -> None:
        """After an update; `found`: the term's mean over the step, None or nan where no sample had it."""
        if found is None:
            return
        counts = was_made & found.isfinite()
        mean = torch.where(self._mean.isnan(), found, DECAY * self._mean + (1 - DECAY) * found)
        by = (RATE * (mean - self._target) / self._target).clamp(-MOST_STEP, MOST_STEP)
        weight = (self._weight * by.exp()).clamp(self._least, self._most)
        self._mean, self._weight = torch.where(counts, mean, self._mean), torch.where(counts, weight, self._weight)

    def state_dict(self) -> dict[str, Any]:
        """The weight, and the running mean of the term."""
        return {"weight": self._weight.cpu(), "mean": self._mean.cpu()}

    def check_state(self, state: Any) -> None:
        """Two numbers: the weight within its limits; the mean may not be there yet."""
        whole = isinstance(state, dict) and state.keys() == {"weight", "mean"}
        if not whole or not all(isinstance(each, Tensor) and each.numel() == 1 for each in state.values()):
            raise ValueError("the weight of output preservation is no pair of numbers")
        if not self._least * 0.999 <= float(state["weight"]) <= self._most * 1.001 or math.isinf(float(state["mean"])):
            raise ValueError(f"the weight of output preservation is {float(state['weight']):g}, which it can't be here")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As it was."""
        self._weight, self._mean = (state[name].to(self._weight) for name in ("weight", "mean"))


def adaptive_weight(job: Job, device: torch.device) -> AdaptiveWeight | None:
    """Of output preservation, where it has a target."""
    options = job.regularizers
    if not (options.output_preservation and options.preservation_target):
        return None
    return AdaptiveWeight(OUTPUT_PRESERVATION, options.output_preservation, options.preservation_target, device)

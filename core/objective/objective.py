"""Objectives: what a step minimises, in terms that are backpropagated as they come.

B batch, C channels, F latent frames, H W latent size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..flow.objective import flow_loss, guided_target, place_weights, weigh
from ..settings.job import Job
from ..settings.loss import LossOptions
from .forwards import Forwards, NoisyBatch
from .passes import ONE_FORWARD, Passes
from .regularizers import regularizers_of
from .terms import Group, Term


class Objective(Protocol):
    """What is minimised."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all terms that there may be, in their order."""
        ...

    @property
    def passes(self) -> Passes:
        """What `terms` does with the model, one backward after each group: the planner and CUDA graphs rely on it."""
        ...

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The terms of a batch, group by group; the first term is what is learnt, and what validation looks at.

        Whoever iterates backpropagates a group before the next one is asked for, so that the memory is that of one
        forward at a time. What is kept from one group to the next must have no gradient.
        """
        ...


@dataclass(frozen=True)
class FlowMatching:
    """The velocity from data to noise, and nothing else."""

    options: LossOptions
    passes: Passes = ONE_FORWARD
    names: tuple[str, ...] = ("flow",)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """The one term."""
        pred = forwards.pred(noisy)
        target = guided_target(pred, noisy.target, self.options.differential_guidance)
        masks = place_weights(noisy.latents, self.options, noisy.masks)
        losses = flow_loss(
            pred, target, options=self.options, sigmas=noisy.sigmas, given_frames=noisy.given_frames, masks=masks
        )
        yield [Term(self.names[0], weigh(losses, noisy.sigmas, self.options))]


class Sum:
    """Several objectives, one after the other: what is learnt, then what regularises it."""

    def __init__(self, learnt: Objective, *regularizers: Objective) -> None:
        self._objectives = (learnt, *regularizers)
        self.passes = sum((each.passes for each in regularizers), learnt.passes)
        self.names = tuple(name for each in self._objectives for name in each.names)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """Those of each."""
        for objective in self._objectives:
            yield from objective.terms(noisy, forwards)


def objective_of(job: Job) -> Objective:
    """What this job minimises. ConfigError for a loss or a weighting that is not known."""
    learnt, regularizers = FlowMatching(job.loss), regularizers_of(job.regularizers)
    return Sum(learnt, *regularizers) if regularizers else learnt

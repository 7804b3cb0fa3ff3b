"""Objectives: what a step minimises, in terms that are backpropagated as they come.

B batch, C channels, F latent frames, H W latent size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..flow.objective import flow_loss, guided_target, place_weights, weigh
from ..settings.job import Job
from ..settings.loss import LossOptions
from .contrastive import ContrastiveGuidance
from .forwards import Forwards, NoisyBatch
from .passes import ONE_FORWARD, Pass, Passes
from .prior import PriorTarget
from .regularizers import Regularizer, regularizers_of
from .rollout import RollOut, direction_loss
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
    direction: float = 0.0  # weight of a term beside it: how far the prediction points past the clean video
    alignment: float = 0.0  # and of one: how little the hidden states agree with an image encoder's features (CREPA)
    passes: Passes = ONE_FORWARD

    @property
    def names(self) -> tuple[str, ...]:
        """Of its terms."""
        further = {"direction": self.direction, "crepa": self.alignment}
        return ("flow", *(name for name, weight in further.items() if weight))

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """That of the flow, and those beside it of the same forward."""
        yield self.terms_of(forwards.pred(noisy), noisy, forwards)

    def terms_of(self, pred: Tensor, noisy: NoisyBatch, forwards: Forwards) -> list[Term]:
        """The terms, of what the model predicts, [B, C, F, H, W]."""
        target = guided_target(pred, noisy.target, self.options.differential_guidance)
        masks = place_weights(noisy.latents, self.options, noisy.masks)
        losses = flow_loss(
            pred, target, options=self.options, sigmas=noisy.sigmas, given_frames=noisy.given_frames, masks=masks
        )
        found = [Term("flow", weigh(losses, noisy.sigmas, self.options))]
        if self.direction:
            found.append(Term("direction", direction_loss(pred, noisy), self.direction))
        if self.alignment:
            found.append(Term("crepa", forwards.aligned(noisy), self.alignment))
        return found


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


class AtOnce:
    """As `Sum`, with one forward: copies of the batch, each with captions of its own, go through the model together.

    It gives the same gradients. Small batches take less time so, as there are fewer steps from kernel to kernel; the memory is
    that of a batch as many times as large.
    """

    def __init__(self, learnt: FlowMatching, *regularizers: Regularizer) -> None:
        self._learnt, self._regularizers = learnt, regularizers
        priors: tuple[Pass, ...] = ("forward without gradient",) * len(regularizers)
        self.passes = Passes((*priors, *learnt.passes.order), copies=1 + len(regularizers))
        self.names = (*learnt.names, *(name for each in regularizers for name in each.names))

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """All terms, of one group."""
        contexts = [each.context(noisy, forwards) for each in self._regularizers]
        chosen = [(each, own) for each, own in zip(self._regularizers, contexts, strict=True) if own is not None]
        priors = [forwards.base(noisy, own) for _, own in chosen]
        learnt, *others = forwards.preds(noisy, [noisy.context, *(own for _, own in chosen)])
        found = self._learnt.terms_of(learnt, noisy, forwards)
        found += [each.term(noisy, pred, prior) for (each, _), pred, prior in zip(chosen, others, priors, strict=True)]
        yield found


class Preparation(Protocol):
    """What is done with a batch before anything is learnt from it: in training, not in validation."""

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The forwards that it takes, all without a gradient."""
        ...

    def __call__(self, noisy: NoisyBatch, forwards: Forwards) -> NoisyBatch:
        """The batch as it is trained."""
        ...


class PreparedObjective:
    """An objective of batches that are prepared first."""

    def __init__(self, objective: Objective, *preparations: Preparation) -> None:
        self._objective, self._preparations = objective, preparations
        self.names = objective.names
        first: tuple[Pass, ...] = tuple(each for preparation in preparations for each in preparation.passes)
        self.passes = replace(objective.passes, order=first + objective.passes.order)

    def terms(self, noisy: NoisyBatch, forwards: Forwards) -> Iterator[Group]:
        """Those of the objective."""
        for prepare in self._preparations:
            noisy = prepare(noisy, forwards)
        yield from self._objective.terms(noisy, forwards)


def learnt_of(job: Job) -> FlowMatching:
    """What this job learns, without what is done in training alone. ConfigError for a loss or a weighting that is not known."""
    return FlowMatching(job.loss)


def objective_of(job: Job) -> Objective:
    """What this job minimises. ConfigError for a loss or a weighting that is not known."""
    direction = job.rollout.direction if job.rollout.steps else 0.0
    learnt = FlowMatching(job.loss, direction=direction, alignment=job.crepa.weight)
    regularizers = regularizers_of(job.regularizers)
    objective: Objective = learnt
    if regularizers:
        objective = (AtOnce if job.regularizers.single_pass else Sum)(learnt, *regularizers)
    preparations: list[Preparation] = []
    if job.rollout.steps:
        preparations.append(RollOut(job.rollout))
    if job.loss.contrastive_guidance:
        preparations.append(ContrastiveGuidance(job.loss))
    if job.regularizers.prior_preservation:
        preparations.append(PriorTarget())
    return PreparedObjective(objective, *preparations) if preparations else objective

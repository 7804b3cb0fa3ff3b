"""The numbers that a step reports (losses, noise levels), gathered on the device so that nothing waits for it."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..facts import SIGMA_BINS
from ..objective.objective import Group
from .batches import Batch

OfBatch = tuple[Tensor, Tensor | None]  # values [B] of a term, and which samples have a part in it: see `Term`


class StepNumbers:
    """Losses, noise levels and terms of a step's batches, each [B]; none of them is waited for."""

    def __init__(self) -> None:
        self.tokens = 0
        self.names: list[str] = []  # of the terms, where there are several; their means end `stacked`
        # Loss, gradient norm, mean sigma; of each bin of sigma the sum of its losses, then their counts. There after `finish`.
        self.stacked = torch.empty(0)
        self._losses: list[Tensor] = []  # [B] of each batch
        self._sigmas: list[Tensor] = []
        self._terms: dict[str, list[Tensor]] = {}  # nan: of a sample that has no part in it
        self._terms_of_batch: list[dict[str, OfBatch]] = []

    @classmethod
    def known(
        cls, losses: Sequence[Tensor], sigmas: Sequence[Tensor], terms: Mapping[str, list[Tensor]], *, tokens: int
    ) -> "StepNumbers":
        """The numbers that this rank and the others have gathered."""
        found = cls()
        found.tokens, found._losses, found._sigmas = tokens, list(losses), list(sigmas)
        found._terms = dict(terms)
        return found

    def begin(self, batch: Batch, sigmas: Tensor) -> None:
        """A batch, at these sigmas [B]."""
        self.tokens += batch.num_tokens
        self._sigmas.append(sigmas)
        self._terms_of_batch.append({})

    def add(self, terms: Group) -> Tensor:
        """Terms of the batch; what of its loss they are, [B], with its gradient."""
        for term in terms:
            values = term.losses.detach()
            known = values if term.there is None else values.masked_fill(term.there == 0, math.nan)
            self._terms.setdefault(term.name, []).append(known)
            self._terms_of_batch[-1][term.name] = values, term.there
        loss = reduce(torch.add, [term.weight * term.losses for term in terms])
        if len(self._losses) < len(self._sigmas):
            self._losses.append(loss.detach())
        else:
            self._losses[-1] = self._losses[-1] + loss.detach()
        return loss

    def of_batch(self, place: int) -> tuple[Tensor, Tensor, Mapping[str, OfBatch]]:
        """Losses, sigmas and terms of one of the batches, each [B]."""
        return self._losses[place], self._sigmas[place], self._terms_of_batch[place]

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch."""
        return [len(sigmas) for sigmas in self._sigmas]

    def mean_of(self, name: str) -> Tensor | None:
        """Of a term over the samples of the step that have it; None where no batch of this rank, nan where none of any has.

        So it does not depend on which samples go through the model together.
        """
        values = self._terms.get(name)
        return torch.cat(values).nanmean() if values else None

    def finish(self, grad_norm: Tensor) -> Tensor:
        """All batches are there: whether the update is to be made, one bool on the device."""
        losses, sigmas = torch.cat(self._losses), torch.cat(self._sigmas)
        loss = losses.mean()
        numbers, terms = [loss, grad_norm, sigmas.mean()], []
        if len(self._terms) > 1:
            self.names = list(self._terms)
            terms = [torch.cat(values).nanmean() for values in self._terms.values()]
        self.stacked = torch.cat([torch.stack(numbers), *_in_bins(losses, sigmas), *(term.view(1) for term in terms)])
        return grad_norm.isfinite() & loss.isfinite()


def _in_bins(losses: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Of losses [S] at sigmas [S]: their sum, and how many there are, in each of SIGMA_BINS equal parts of [0, 1]."""
    bins = (sigmas * SIGMA_BINS).long().clamp(0, SIGMA_BINS - 1)
    is_in = bins.unsqueeze(1) == torch.arange(SIGMA_BINS, device=bins.device)  # [S, SIGMA_BINS]
    zero = torch.zeros((), device=losses.device, dtype=losses.dtype)
    return torch.where(is_in, losses.unsqueeze(1), zero).sum(0), is_in.sum(0).to(losses.dtype)

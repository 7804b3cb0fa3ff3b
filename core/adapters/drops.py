"""Parts of an adapter that are left out of a forward: ranks or layers at random, or ranks by the noise level.

What is drawn is drawn where PyTorch's own dropout draws, so that a forward that is run again draws the same: every class here
that draws is an `nn.Dropout`, which whoever runs a block again looks for.

B batch, L tokens (any axes between), r rank, out width of the layer's result.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..settings.adapter import AdapterOptions


class RankDropout(nn.Dropout):
    """Of each sample other ranks are 0, and those that are left count 1 / (1 - p) times (kohya's rank_dropout)."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, L, r] -> [B, L, r]."""
        if not self.training:
            return input
        ones = input.new_ones((input.shape[0], *[1] * (input.ndim - 2), input.shape[-1]))
        return input * functional.dropout(ones, self.p)


class RowDropout(nn.Dropout):
    """The same for kinds without one list of ranks: some of the result's numbers, the same of all samples.

    So have LyCORIS and musubi-tuner it for LoKr and LoHa, whose rows of the weight's change it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] -> [..., out]."""
        if not self.training:
            return input
        return input * functional.dropout(input.new_ones(input.shape[-1]), self.p)


class ModuleDropout(nn.Dropout):
    """With the chance p all is 0, and what is left counts as ever (kohya's module_dropout).

    There a layer that is left out has no gradient at all; here it is 0, so that a momentum goes on.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        if not self.training:
            return input
        chance = torch.full((), 1.0 - self.p, device=input.device)
        return input * torch.bernoulli(chance).to(input.dtype)


def drops_of(options: AdapterOptions, *, has_ranks: bool) -> list[nn.Module]:
    """Those that the options ask for, in order. `has_ranks`: of what is given to them, the last axis is the rank."""
    found: list[nn.Module] = []
    if options.rank_dropout:
        found.append(RankDropout(options.rank_dropout) if has_ranks else RowDropout(options.rank_dropout))
    if options.module_dropout:
        found.append(ModuleDropout(options.module_dropout))
    return found

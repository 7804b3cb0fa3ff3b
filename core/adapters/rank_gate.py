"""How many ranks of a T-LoRA are trained at a noise level (Soboleva et al., 2025, arXiv:2507.05964).

    r(sigma) = floor((1 - n)^power (r - r_min)) + r_min,    n = (sigma - low) / (high - low)

n is the place of a sample's sigma in the window that its model generates in: an expert of Wan 2.2 has all its ranks at its own
lowest noise. Nothing is left out while a model generates: ComfyUI applies a LoRA whole, and what previews show is what it does.

B batch, T timesteps of a sample, L tokens, r rank.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..facts import NUM_TIMESTEPS


class RankGate(nn.Module):
    """Of a whole model: which ranks are left out of its present forward, for each sample.

    It is given the timesteps at the beginning of each forward, and what it makes of them stands until the next one: blocks that
    are run again for a backward find it there. So all forwards that wait for the same backward must have the same timesteps, as
    those of one batch have.
    """

    def __init__(self, min_rank: int, power: float) -> None:
        """`min_rank`: of the highest noise; 0: half of a layer's rank."""
        super().__init__()
        self.min_rank, self.power = min_rank, power
        self.low, self.high = 0.0, 1.0  # sigmas; see `set_noise_window`
        self.ranks: set[int] = set()  # of the layers
        self.left_out: dict[int, Tensor] = {}  # by rank: [B, 1, r] bool; nothing where a model generates

    def forward(self, timesteps: Tensor) -> None:
        """timesteps [B, T] = 1000 sigma; a frame that is given clean has 0, the others those of the sample."""
        if not self.training:
            self.left_out = {}
            return
        sigmas = timesteps.float().amax(1) / NUM_TIMESTEPS
        share = (1.0 - (sigmas - self.low) / (self.high - self.low)).clamp(0.0, 1.0) ** self.power
        self.left_out = {rank: self._left_out(share, rank) for rank in sorted(self.ranks)}

    def _left_out(self, share: Tensor, rank: int) -> Tensor:
        least = min(rank, self.min_rank or max(1, rank // 2))
        number = (share * (rank - least)).floor() + least
        return torch.arange(rank, device=share.device)[None, None] >= number[:, None, None]


class GatedRanks(nn.Module):
    """Of one layer: sets to 0 what the gate leaves out."""

    def __init__(self, gate: RankGate, rank: int) -> None:
        super().__init__()
        self.__dict__["gate"] = gate  # no part of the layer: a deepcopy of the model has one gate, too
        self.rank = rank
        gate.ranks.add(rank)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, r] -> [B, L, r]."""
        left_out = self.__dict__["gate"].left_out.get(self.rank)
        return hidden if left_out is None else hidden.masked_fill(left_out, 0.0)


def set_noise_window(model: Any, low: float, high: float) -> None:
    """The sigmas that `model` generates between. Without effect on a model without a gate."""
    gate = getattr(model, "rank_gate", None)
    if isinstance(gate, RankGate):
        gate.low, gate.high = low, high

"""CREPA (Hwang et al., 2025, arXiv:2506.09229): hidden states of a frame agree with DINOv2's features of it and its neighbours.

Formulas as SimpleTuner has them (simpletuner/helpers/training/crepa.py, bc8e6ab). B batch, F latent frames, A tokens of a
frame, P places of the encoder in a frame, D width, E width of the features.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..settings.crepa import CrepaOptions


class Projection(nn.Module):
    """From the transformer's width to the encoder's: LayerNorm, then a linear layer, in float32. Trained with the LoRA."""

    def __init__(self, dim: int, features: int, *, seed: int) -> None:
        """Its start is a function of the seed: PyTorch's uniform distribution of a linear layer."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, features)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.uniform_(-1, 1, generator=generator).mul_(dim**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., E] float32."""
        return self.linear(self.norm(hidden.float()))


def chosen_frames(num_pixel_frames: int, num_latent_frames: int) -> list[int]:
    """Of a clip's frames, those whose features stand for its latent frames."""
    return [int(frame) for frame in torch.linspace(0, num_pixel_frames - 1, num_latent_frames)]


def similarity(projected: Tensor, features: Tensor, options: CrepaOptions) -> Tensor:
    """projected [B, F, A, E] and features [B, F, P, E] -> how much they agree, [B] float32.

    The cosine of each place, the mean over places, plus exp(-d / tau) times that with the features d frames on and d frames
    back; the mean over frames.
    """
    places = min(projected.shape[2], features.shape[2])
    y, f = (functional.normalize(_to_places(each, places), dim=-1) for each in (projected, features.float()))
    frames = y.shape[1]
    total = (y * f).sum(-1).mean(-1)  # [B, F]
    farthest = min(options.distance, frames - 1)
    for distance in range(1 if options.neighbours == "all" else max(farthest, 1), farthest + 1):
        weight = math.exp(-distance / options.tau)
        on = (y[:, :-distance] * f[:, distance:]).sum(-1).mean(-1)
        back = (y[:, distance:] * f[:, :-distance]).sum(-1).mean(-1)
        total = total + weight * (functional.pad(on, (0, distance)) + functional.pad(back, (distance, 0)))
    return total.mean(1)


def _to_places(tokens: Tensor, places: int) -> Tensor:
    """tokens [B, F, N, E] -> [B, F, `places`, E]: square grids bilinearly, others along their order."""
    if tokens.shape[2] == places:
        return tokens
    flat = tokens.flatten(0, 1).transpose(1, 2)  # [B F, E, N]
    if torch.are_deterministic_algorithms_enabled():  # the backward of `interpolate` adds up in any order on a GPU
        found = flat @ _resizing(flat.shape[2], places, flat.device)
    else:
        found = _resize(flat, places)
    return found.transpose(1, 2).view(*tokens.shape[:2], places, -1)


@lru_cache
def _resizing(length: int, places: int, device: torch.device) -> Tensor:
    """`_resize` as a matrix [`length`, `places`], float32."""
    return _resize(torch.eye(length)[:, None], places)[:, 0].to(device)


def _resize(flat: Tensor, places: int) -> Tensor:
    """[..., E, N] -> [..., E, `places`], the same linear map of each row."""
    side, new = math.isqrt(flat.shape[2]), math.isqrt(places)
    if side**2 == flat.shape[2] and new**2 == places:
        return functional.interpolate(
            flat.reshape(*flat.shape[:2], side, side), size=(new, new), mode="bilinear"
        ).flatten(2)
    return functional.interpolate(flat, size=places, mode="linear")

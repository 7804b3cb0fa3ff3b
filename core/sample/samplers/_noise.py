"""The noise that samplers add, as the host draws it for these seeds.

B samples, C channels, F H W latent frames, height, width.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...packages import unusable

_MOST = 2**64  # seeds are numbers of 64 bits


def fresh_noise(latents: Tensor, seeds: Sequence[int]) -> Callable[[], Tensor]:
    """Standard normal noise of the shape of latents [B, C, F, H, W], other one at each call: default_noise_sampler.

    It is drawn on the latents' device; on the CPU by the next seed, as there the first noise comes of this one.
    """
    next_on_cpu = latents.device.type == "cpu"
    by_sample = [
        torch.Generator(latents.device).manual_seed((seed + next_on_cpu) % _MOST) for seed in _repeated(latents, seeds)
    ]

    def draw() -> Tensor:
        like = {"device": latents.device, "dtype": latents.dtype}
        return torch.cat([torch.randn(latents[:1].shape, generator=generator, **like) for generator in by_sample])

    return draw


def brownian_noise(latents: Tensor, sigmas: Tensor, seeds: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Standard normal noise [B, C, F, H, W] between two sigmas, of one Brownian motion: BrownianTreeNoiseSampler, on the CPU.

    sigmas [steps + 1]: all that may be asked for lie between their least above 0 and their first. ConfigError without torchsde.
    """
    try:
        from torchsde import BrownianTree
    except Exception as error:  # one that does not fit its torch raises anything
        raise unusable("torchsde", error) from error
    by_sample, trees = _repeated(latents, seeds), list[Any]()

    def draw(here: Tensor, there: Tensor) -> Tensor:
        if not trees:  # not before: a way of one step has no room for one
            ends, zeros = sigmas[sigmas > 0], torch.zeros(latents[:1].shape)
            made = (BrownianTree(ends.min(), zeros, ends.max(), entropy=seed % _MOST) for seed in by_sample)
            trees.extend(made)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ends that are off by a rounding
            moved = torch.cat([tree(there, here) for tree in trees])
        return -moved.to(latents) / (here - there).abs().sqrt()

    return draw


def _repeated(latents: Tensor, seeds: Sequence[int]) -> list[int]:
    assert len(seeds) in (1, len(latents)), f"{len(seeds)} seeds for {len(latents)} samples"
    return list(seeds) * (len(latents) // len(seeds))

"""Averaging LoRAs of one run afterwards (post-hoc EMA), as musubi-tuner's tool does.

The mean W begins with the first file, and each further one moves it: W <- beta W + (1 - beta) W_i. A and B are averaged each
for itself, which is not the average of their product, but near to it for files of one run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy

from ..errors import ConfigError, ModelFileError
from .formats import LoraFile, LoraModule, read_lora

LEAST_SIGMA, MOST_SIGMA = 0.02, 0.28  # between which the equation has one positive root that makes a mean


def constant_decays(number: int, beta: float) -> list[float]:
    """The decay before each file after the first. ConfigError for a beta that is none."""
    if not 0.0 <= beta < 1.0:
        raise ConfigError(f"beta must be at least 0 and below 1, got {beta:g}.")
    return [beta] * (number - 1)


def power_decays(number: int, sigma: float) -> list[float]:
    """Those of a mean whose width is the share `sigma` of the way (Karras et al., 2023, arXiv:2312.02696, section 3.1).

    beta_i = (1 - 1/i)^(gamma + 1), with gamma the positive root of
    gamma^3 + 7 gamma^2 + (16 - sigma^-2) gamma + (12 - sigma^-2). ConfigError where there is none.
    """
    if not LEAST_SIGMA <= sigma <= MOST_SIGMA:
        raise ConfigError(f"sigma_rel must be from {LEAST_SIGMA:g} to {MOST_SIGMA:g}, got {sigma:g}.")
    squared = sigma**-2
    gamma = float(numpy.roots([1.0, 7.0, 16.0 - squared, 12.0 - squared]).real.max())
    return [(1 - 1 / i) ** (gamma + 1) for i in range(2, number + 1)]


def average_loras(paths: Sequence[Path], decays: Sequence[float]) -> LoraFile:
    """The mean of LoRA files in this order, with the metadata of the last; `decays` has one for each but the first.

    ConfigError for fewer than two files; ModelFileError for one that can't be read, or that has other layers, ranks or
    alphas than the first.
    """
    if len(paths) < 2:
        raise ConfigError(
            f"{len(paths)} LoRA is given: an average needs two or more, such as the checkpoints of a run."
        )
    mean = read_lora(paths[0])
    first = mean
    for path, beta in zip(paths[1:], decays, strict=True):
        other = read_lora(path)
        _check_same(first, other)
        modules = {name: _mix(module, other.modules[name], beta) for name, module in mean.modules.items()}
        mean = replace(other, modules=modules)
    return mean


def _mix(mean: LoraModule, other: LoraModule, beta: float) -> LoraModule:
    down, up = (beta * a.float() + (1 - beta) * b.float() for a, b in ((mean.down, other.down), (mean.up, other.up)))
    return replace(mean, down=down, up=up)


def _check_same(first: LoraFile, other: LoraFile) -> None:
    def form(file: LoraFile) -> dict[str, tuple[object, ...]]:
        return {name: (m.down.shape, m.up.shape, m.alpha) for name, m in file.modules.items()}

    if form(first) != form(other):
        raise ModelFileError(
            f"{other.path} has other layers, ranks or alphas than {first.path}: average LoRAs of one run alone."
        )

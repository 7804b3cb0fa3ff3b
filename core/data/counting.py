"""Epochs and steps as people count them: an epoch uses each sample once, times its repeats; a step is one update."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import LATENT_CHANNELS, PATCH, PIXELS_PER_LATENT, LatentFormat, latent_shape, num_tokens
from ..words import counted
from .types import Dataset

LatentShape = tuple[int, int, int, int]  # C, F, H, W of latents


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is."""

    batches: int  # of an epoch
    batch_size: int = 1
    accumulation: int = 1  # batches of a step
    steps: int = 0  # of the run; 0: not known here

    @property
    def steps_per_epoch(self) -> float:
        """Whole, or not where the batches of an epoch do not divide into steps."""
        return self.batches / self.accumulation

    @property
    def epochs(self) -> float:
        """That the run's steps are."""
        return self.steps / self.steps_per_epoch

    def steps_of(self, epochs: int) -> int:
        """Steps in which the batches of so many epochs are used; the last may reach into the next epoch."""
        return math.ceil(epochs * self.batches / self.accumulation)


def batch_limit(shape: Sequence[int], batch_size: int, token_budget: int | None) -> int:
    """Most samples of latents [C, F, H, W] in a batch: one alone may have more tokens than the budget."""
    if not token_budget:
        return batch_size
    return max(1, min(batch_size, token_budget // num_tokens(shape)))


def count_batches(samples: Iterable[tuple[LatentShape, int]], batch_size: int, token_budget: int | None = None) -> int:
    """Batches of an epoch over samples of these (shape, repeats): no batch holds two shapes, and none is dropped."""
    amounts = Counter[LatentShape]()
    for shape, repeats in samples:
        amounts[shape] += repeats
    return sum(math.ceil(amount / batch_limit(shape, batch_size, token_budget)) for shape, amount in amounts.items())


def batches_of(
    dataset: Dataset, latent_format: LatentFormat = "wan2.1", batch_size: int = 1, token_budget: int | None = None
) -> int:
    """Batches of an epoch over a dataset whose latents are not made yet."""
    channels, step = LATENT_CHANNELS[latent_format], PIXELS_PER_LATENT[latent_format] * PATCH

    def side(pixels: int) -> int:  # that is encoded
        return pixels // step * step

    shapes = (
        (latent_shape(channels, len(sample.frame_indices), side(sample.height), side(sample.width)), sample.repeats)
        for sample in dataset.samples
        if not sample.held_out
    )
    return count_batches(shapes, batch_size, token_budget)


def describe_epoch(length: Length) -> str:
    """One sentence: what an epoch is."""
    accumulated = f" and gradient_accumulation {length.accumulation}" if length.accumulation > 1 else ""
    return (
        f"an epoch uses each sample once, times its repeats: {counted(length.steps_per_epoch, 'step')} with batch_size "
        f"{length.batch_size}{accumulated}"
    )


def describe_lengths(lengths: Mapping[Any, Length]) -> list[str]:
    """What an epoch is, and how many epochs the steps of each stage are: a sentence, or one for each that differs."""
    stages = list(lengths)
    if not stages:
        return []
    first = lengths[stages[0]]
    is_same = all(length == first for length in lengths.values())
    if len(stages) == 1 or not is_same:
        lines = [f"{_stage(name, len(stages))}{_sentence(length)}" for name, length in lengths.items()]
        total = sum(length.steps for length in lengths.values())
        return [*lines, f"in all: {counted(total, 'step')}"] if len(stages) > 1 else lines
    return [f"{_sentence(first)}; {' and '.join(stages)} each, {counted(first.steps * len(stages), 'step')} in all"]


def _stage(name: str, stages: int) -> str:
    return f"{name}: " if stages > 1 else ""


def _sentence(length: Length) -> str:
    return f"{describe_epoch(length)}; {counted(length.steps, 'step')} are {counted(length.epochs, 'epoch')}"

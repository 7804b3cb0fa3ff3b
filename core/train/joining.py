"""Batches of one step that go through the model together: small ones alone do not fill a GPU.

Each keeps its own draws, and the step's loss is the mean over all samples as before, so that a step is what it was, up to
rounding: a mean of gradients does not depend on who computes them together.

B batch, C channels, F latent frames, H W latent size.
"""

from collections.abc import Sequence

import torch

from ..objective.forwards import ClassContext
from .batches import Batch, Draws


def in_groups(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """`indices` in their order, so many at a time."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of one shape, each with its draws, as one; where only some have a thing, the others get what stands for none."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    weights = [torch.ones(len(b.names)) if b.loss_weights is None else b.loss_weights for b in batches]
    masks = [torch.ones_like(b.latents[:, :1]) if b.masks is None else b.masks for b in batches]
    classes = [_no_class(b) if b.of_class is None else b.of_class for b in batches]
    draws = [b.draws for b in batches if b.draws is not None]
    assert len(draws) == len(batches), "a batch that is joined has its draws"
    has_class = any(b.of_class is not None for b in batches)
    return Batch(
        torch.cat([b.latents for b in batches]),
        torch.cat([b.context for b in batches]),
        tuple(name for b in batches for name in b.names),
        conditioning=_cat([b.conditioning for b in batches]),
        clip_features=_cat([b.clip_features for b in batches]),
        loss_weights=None
        if all(b.loss_weights is None for b in batches)
        else torch.cat([weight.to(first.latents.device) for weight in weights]),
        features=_cat([b.features for b in batches]),
        masks=None if all(b.masks is None for b in batches) else torch.cat(masks),
        of_class=ClassContext(torch.cat([c.context for c in classes]), torch.cat([c.is_there for c in classes]))
        if has_class
        else None,
        priors=None
        if all(b.priors is None for b in batches)
        else torch.cat(
            [
                torch.zeros_like(b.latents[:, 0, 0, 0, 0], dtype=torch.bool) if b.priors is None else b.priors
                for b in batches
            ]
        ),
        draws=Draws(
            torch.cat([d.noise for d in draws]),
            torch.cat([d.sigmas for d in draws]),
            _cat([d.kept_tokens for d in draws]),
            tuple(rollout for d in draws for rollout in d.rollouts),
        ),
        first_draw=first.first_draw,
    )


def _cat(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """What all batches of a run have, or none."""
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def _no_class(batch: Batch) -> ClassContext:
    return ClassContext(torch.zeros_like(batch.context), batch.context.new_zeros(len(batch.names)))

"""What the samples of each size cost: tokens are what a step's time grows with."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.types import Sample
from ..facts import LATENT_CHANNELS, LatentFormat, latent_shape, num_tokens


@dataclass(frozen=True, kw_only=True)
class BucketCost:
    """One size of samples: width, height and frames in pixels."""

    width: int
    height: int
    frames: int
    latent: tuple[int, int, int]  # F, H, W
    tokens: int  # of one sample
    samples: int  # trained on in an epoch, with their repeats
    held_out: int
    share_of_samples: float
    share_of_tokens: float


def latent_size(sample: Sample, latent_format: LatentFormat) -> tuple[int, int, int]:
    """Latent frames, height and width of a sample."""
    channels = LATENT_CHANNELS[latent_format]
    return latent_shape(channels, len(sample.frame_indices), sample.height, sample.width)[1:]


def bucket_costs(samples: Sequence[Sample], latent_format: LatentFormat) -> list[BucketCost]:
    """The sizes of a dataset, the most expensive sample first."""
    groups: dict[tuple[int, int, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.width, sample.height, len(sample.frame_indices)), []).append(sample)
    rows = []
    for (width, height, frames), group in groups.items():
        latent = latent_size(group[0], latent_format)
        trained = sum(sample.repeats for sample in group if not sample.held_out)
        held_out = sum(sample.held_out for sample in group)
        rows.append((width, height, frames, latent, num_tokens(latent), trained, held_out))
    all_samples = sum(row[5] for row in rows) or 1
    all_tokens = sum(row[4] * row[5] for row in rows) or 1
    rows.sort(key=lambda row: (-row[4], row[:3]))
    return [
        BucketCost(
            width=width,
            height=height,
            frames=frames,
            latent=latent,
            tokens=tokens,
            samples=trained,
            held_out=held_out,
            share_of_samples=trained / all_samples,
            share_of_tokens=tokens * trained / all_tokens,
        )
        for width, height, frames, latent, tokens, trained, held_out in rows
    ]

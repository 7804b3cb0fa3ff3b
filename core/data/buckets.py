"""Sizes: which bucket a file goes to, what is cut off on the way, and which samples are held out. Pure functions."""

import math
from collections.abc import Sequence
from typing import Literal

from ..facts import PATCH, PIXELS_PER_LATENT
from ..settings.dataset import DatasetOptions
from ..settings.dataset_frames import sizes_of

STEP = PIXELS_PER_LATENT["wan2.1"] * PATCH  # of the VAE with the smaller one; the other rounds down again
_NOTED_LOSS = 0.02  # a smaller part of a side may be cut off without a word: buckets rarely fit to the pixel


def bucket_sizes(area: int) -> tuple[tuple[int, int], ...]:
    """All (width, height) in multiples of 16, aspects 1:4 to 4:1, whose area comes nearest to `area` from below."""
    side = math.isqrt(area)
    square = max(STEP, side // STEP * STEP)
    sizes = {(square, square)}
    for short in range(max(STEP, side // 2 // STEP * STEP), side + STEP, STEP):
        long = area // short // STEP * STEP
        if long >= STEP:
            sizes.update({(short, long), (long, short)})
    return tuple(sorted(sizes))


def bucket_for(
    width: int, height: int, options: DatasetOptions, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Bucket (width, height) for a file of the displayed size width x height, both at least 16.

    With aspect buckets: the size of the area of `size` that is nearest in aspect (by ratio), the larger one on a tie.
    `size` is the options' width and height where it is not given. Without `upscale` a side of the bucket never exceeds the
    file's own side rounded down to 16.
    """
    best = size or (options.width, options.height)
    if options.aspect_buckets:
        sizes = {*bucket_sizes(best[0] * best[1]), best}
        best = min(sizes, key=lambda s: (round(abs(math.log(s[0] * height / (s[1] * width))), 9), -s[0] * s[1], s))
    if not options.upscale and (width < best[0] or height < best[1]):
        best = (min(best[0], width // STEP * STEP), min(best[1], height // STEP * STEP))
    return best


def buckets_of(
    width: int, height: int, options: DatasetOptions, shape: tuple[int, int] | None = None
) -> tuple[list[tuple[int, int]], list[tuple[Literal["cropped", "note"], str]]]:
    """The bucket of a file of width x height at each size of the options, no two the same, and what there is to tell.

    `shape`: the (width, height) of the part of it that the bucket is chosen for; None: all of it.
    """
    found: list[tuple[int, int]] = []
    told: list[tuple[Literal["cropped", "note"], str]] = []
    for size in sizes_of(options):
        bucket = bucket_for(*(shape or (width, height)), options, size)
        if bucket in found:
            told.append(("note", f"at {size[0]}x{size[1]} it would be {bucket[0]}x{bucket[1]} again: that is left out"))
            continue
        found.append(bucket)
        for lost, side in zip(crop_loss(width, height, bucket), ("width", "height"), strict=True):
            if lost > _NOTED_LOSS:
                reason = f"{lost:.1%} of its {side} is cut off ({width}x{height} to {bucket[0]}x{bucket[1]})"
                told.append(("cropped", reason))
    return found, told


def cover_box(
    width: int, height: int, bucket: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the largest part of width x height that has the bucket's aspect, in pixels.

    `place` says where it lies: 0, 0 is top left, 1, 1 is bottom right.
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    kept_width, kept_height = min(width, bucket[0] / scale), min(height, bucket[1] / scale)
    left, top = (width - kept_width) * place[0], (height - kept_height) * place[1]
    return left, top, left + kept_width, top + kept_height


def crop_loss(width: int, height: int, bucket: tuple[int, int]) -> tuple[float, float]:
    """Fractions of the width and of the height that scaling to cover the bucket cuts off; one of them is 0."""
    left, top, right, bottom = cover_box(width, height, bucket)
    return 1 - (right - left) / width, 1 - (bottom - top) / height


def held_out_indices(windows_per_file: Sequence[int], count: int) -> frozenset[int]:
    """Indices of `count` samples to hold out, where file i contributed windows_per_file[i] consecutive samples.

    Whole files are held out, evenly spread over the list, because two windows of one clip look alike and would make the
    held-out loss follow the training loss. Where the count does not allow for whole files, one file is divided: its
    last windows are held out. `count` must be smaller than the number of samples.
    """
    total, num_files = sum(windows_per_file), len(windows_per_file)
    assert 0 <= count < max(total, 1)
    starts = [sum(windows_per_file[:i]) for i in range(num_files)]
    for num_chosen in range(1, num_files + 1) if count else ():
        chosen = [(2 * i + 1) * num_files // (2 * num_chosen) for i in range(num_chosen)]
        if sum(windows_per_file[i] for i in chosen) < count:
            continue
        held: list[int] = []
        for i in chosen:
            take = min(windows_per_file[i], count - len(held))
            held.extend(range(starts[i] + windows_per_file[i] - take, starts[i] + windows_per_file[i]))
        return frozenset(held)
    return frozenset()

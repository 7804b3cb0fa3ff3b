"""From a sample to pixels, and to its mask. Shapes: F frames, H W bucket height and width, h w latent height and width."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from PIL import Image

from ..errors import DatasetError
from ..facts import PIXELS_PER_LATENT, LatentFormat
from ..words import counted
from .ahead import on_threads
from .buckets import cover_box
from .clip_pixels import frame_to_alpha, frame_to_rgb
from .clips import read_clip
from .masks import to_latents
from .media import CLIP_SUFFIXES, BadMediaError, check_plain_file, decoding
from .motion import SIDE, place_of_motion
from .pictures import read_picture
from .probe import file_stamp, hash_of
from .types import CENTER, MediaFile, Sample
from .watch import Interrupt

THREADS = min(4, os.cpu_count() or 1)  # that convert and scale a clip's frames while the next ones are decoded
_MAX_PLACES = 10_000  # that are kept in memory
_places: dict[str, tuple[float, float]] = {}  # where samples move most, by their content


def read_frames(sample: Sample, interrupt: Interrupt | None = None) -> torch.Tensor:
    """A sample's frames, uint8 RGB [F, H, W, 3]: turned as displayed, scaled to cover the bucket, cut, and flipped.

    Scaling is PIL's Lanczos (antialiased, the same on every machine), in one step with the cut. Transparency is laid on
    white. A clip is decoded from the keyframe before the window to the window's end, and twice where the cut follows the
    motion. Raises DatasetError naming the file if it cannot be decoded, gives fewer frames than when it was scanned, or was
    changed since then: what is made of it would be kept under the hash of what it was. `interrupt` is asked frame by frame.
    """
    bucket = (sample.width, sample.height)
    with _unchanged(sample, sample.file, interrupt):
        box = _box(sample, interrupt)

        def scaled(image: Image.Image) -> np.ndarray:
            own_box = _own_box(image, box, sample.file)
            return np.asarray(_flipped(image.resize(bucket, Image.Resampling.LANCZOS, box=own_box), sample.flip))

        frames = _each(sample.file, sample.frame_indices, scaled, interrupt)
        return torch.from_numpy(np.stack([frames[index] for index in sample.frame_indices]))  # [F, H, W, 3]


def read_given(sample: Sample, frames: torch.Tensor, interrupt: Interrupt | None = None) -> torch.Tensor:
    """`frames`, the sample's own [F, H, W, 3], with the pictures that are given with it in place of the first and last.

    Each is scaled, cut and flipped as the clip is. Raises DatasetError as `read_frames` does.
    """
    if sample.given is None or not (sample.given.first or sample.given.last):
        return frames
    found = frames.clone()
    for index, file in ((0, sample.given.first), (-1, sample.given.last)):
        if file is not None:
            picture = dataclasses.replace(sample, file=file, frame_indices=(0,), given=None, mask=None)
            found[index] = read_frames(picture, interrupt)[0]
    return found


def read_paired(sample: Sample, name: str, interrupt: Interrupt | None = None) -> torch.Tensor:
    """The control clip or the reference picture of a sample, uint8 RGB [F, H, W, 3], F = 1 for a reference.

    A control is cut and flipped as the sample's frames are, and a picture stands for all of them. A reference is cut in its
    own middle. Raises DatasetError as `read_frames` does.
    """
    assert sample.given is not None
    file = sample.given.paired[name]
    if name == "reference":
        own = dataclasses.replace(sample, file=file, frame_indices=(0,), crop=CENTER, follows_motion=False)
        return read_frames(own, interrupt)
    bucket = (sample.width, sample.height)
    with _unchanged(sample, sample.file, interrupt):
        box = _box(sample, interrupt)

    def scaled(image: Image.Image) -> np.ndarray:
        own_box = _own_box(image, box, sample.file)
        return np.asarray(_flipped(image.resize(bucket, Image.Resampling.LANCZOS, box=own_box), sample.flip))

    indices = sample.frame_indices if file.num_frames > 1 else (0,) * len(sample.frame_indices)
    with _unchanged(sample, file, interrupt):
        frames = _each(file, indices, scaled, interrupt)
        return torch.from_numpy(np.stack([frames[index] for index in indices]))


def read_mask(sample: Sample, latent_format: LatentFormat, interrupt: Interrupt | None = None) -> torch.Tensor:
    """What the error at each latent of a sample with a mask counts, float32 [f, h, w], cut and flipped as its frames are.

    Each latent has the mean of its pixels, and the first latent frame those of the first frame, each other of its four.
    Raises DatasetError as `read_frames` does.
    """
    mask = sample.mask
    assert mask is not None
    pixels = PIXELS_PER_LATENT[latent_format]
    size = (sample.width // pixels, sample.height // pixels)
    file = mask.file or sample.file
    with _unchanged(sample, sample.file, interrupt):
        box = _box(sample, interrupt)

    def scaled(image: Image.Image) -> np.ndarray:
        # The box is a part of the sample's own picture: the same part of the mask, whose size may be another.
        own_box = _own_box(image, box, sample.file)
        grey = image.convert("F").resize(size, Image.Resampling.BOX, box=own_box)
        return np.asarray(_flipped(grey, sample.flip)) / 255

    indices = sample.frame_indices if file.kind == "video" else (0,) * len(sample.frame_indices)
    with _unchanged(sample, file, interrupt):
        frames = _each(file, indices, scaled, interrupt, alpha=mask.file is None)
        return to_latents(np.stack([frames[index] for index in indices]), inverted=mask.inverted, least=mask.least)


@contextmanager
def _unchanged(sample: Sample, file: MediaFile, interrupt: Interrupt | None) -> Iterator[None]:
    """Around the reading of a sample's file or of its mask's: DatasetError for one that is not what was scanned."""
    try:
        stamp = _check_unchanged(file, interrupt)
        yield
        if file_stamp(Path(file.path)) != stamp:
            raise BadMediaError("it was changed while it was read")
    except (BadMediaError, OSError) as error:
        why = f"it cannot be read ({error.strerror or error})" if isinstance(error, OSError) else error
        raise DatasetError(
            f"{file.path} cannot be used: {why}; replace or remove it, then scan the folder again."
        ) from error
    except MemoryError as error:
        raise DatasetError(
            f"{file.path} cannot be used: main memory is too small for {counted(len(sample.frame_indices), 'frame')} of "
            f"{sample.width}x{sample.height} in one sample; use fewer frames or a smaller size."
        ) from error


def _check_unchanged(file: MediaFile, interrupt: Interrupt | None) -> list[int]:
    """The file's stamp, if its bytes are those that were scanned."""
    path = Path(file.path)
    check_plain_file(path)
    stamp = file_stamp(path)
    if hash_of(path, stamp, interrupt) != file.sha256:
        raise BadMediaError("it was changed since the folder was scanned")
    return stamp


def _each(
    file: MediaFile,
    indices: Sequence[int],
    make: Callable[[Image.Image], np.ndarray],
    interrupt: Interrupt | None,
    *,
    alpha: bool = False,
) -> dict[int, np.ndarray]:
    """What `make` makes of each of these frames, on threads; with `alpha` of what is transparent in it, in mode L."""
    path, read_as = Path(file.path), file.read_as
    wanted = sorted(set(indices))
    is_clip = path.suffix.lower() in CLIP_SUFFIXES

    def finish(item: tuple[int, VideoFrame | Image.Image]) -> tuple[int, np.ndarray]:
        index, frame = item
        if isinstance(frame, VideoFrame):
            frame = frame_to_alpha(frame) if alpha else frame_to_rgb(frame, read_as)
        with decoding("clip" if is_clip else "image"):
            return index, make(frame)

    images: Iterator[Any] = (
        read_clip(path, wanted, file.num_frames, interrupt, read_as=read_as)
        if is_clip
        else read_picture(path, wanted, interrupt, read_as=read_as, alpha=alpha)
    )
    return dict(on_threads(finish, images, THREADS))


def _box(sample: Sample, interrupt: Interrupt | None) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part that is kept, in displayed pixels of the file."""
    file, bucket = sample.file, (sample.width, sample.height)
    if not sample.follows_motion:
        return cover_box(file.width, file.height, bucket, sample.crop)
    if sample.content_key not in _places:

        def small(image: Image.Image) -> np.ndarray:
            return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))

        frames = _each(file, sample.frame_indices, small, interrupt)
        left, top, right, bottom = cover_box(file.width, file.height, bucket, CENTER)
        kept = ((right - left) / file.width, (bottom - top) / file.height)
        place = place_of_motion(np.stack([frames[index] for index in sample.frame_indices]), kept)
        if len(_places) >= _MAX_PLACES:
            _places.clear()
        _places[sample.content_key] = place
    return cover_box(file.width, file.height, bucket, _places[sample.content_key])


def _own_box(
    image: Image.Image, box: tuple[float, float, float, float], file: MediaFile
) -> tuple[float, float, float, float]:
    """`box` is in displayed pixels of the file; the image's own pixels may not be square."""
    x, y = image.width / file.width, image.height / file.height
    return box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height)


def _flipped(image: Image.Image, flip: str) -> Image.Image:
    if "x" in flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if "y" in flip else image

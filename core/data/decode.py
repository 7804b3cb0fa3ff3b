"""From a sample to pixels. Shapes: F frames, H W bucket height and width."""

import os
from pathlib import Path

import numpy as np
import torch
from av.video.frame import VideoFrame
from PIL import Image

from ..errors import DatasetError
from .ahead import on_threads
from .buckets import cover_box
from .clips import frame_to_rgb, read_clip
from .media import CLIP_SUFFIXES, BadMediaError, check_plain_file, decoding
from .pictures import read_picture
from .probe import file_stamp, hash_of
from .types import MediaFile, Sample
from .watch import Interrupt

THREADS = min(4, os.cpu_count() or 1)  # that convert and scale a clip's frames while the next ones are decoded


def read_frames(sample: Sample, interrupt: Interrupt | None = None) -> torch.Tensor:
    """A sample's frames, uint8 RGB [F, H, W, 3]: turned as displayed, scaled to cover the bucket, cut at its centre.

    Scaling is PIL's Lanczos (antialiased, the same on every machine), in one step with the cut. Transparency is laid on
    white. A clip is decoded from the keyframe before the window to the window's end. Raises DatasetError naming the
    file if it cannot be decoded, gives fewer frames than when it was scanned, or was changed since then: what is made of
    it would be kept under the hash of what it was. `interrupt` is asked frame by frame.
    """
    file = sample.file
    try:
        stamp = _check_unchanged(file, interrupt)
        frames = _read(sample, interrupt)
        if file_stamp(Path(file.path)) != stamp:
            raise BadMediaError("it was changed while it was read")
    except (BadMediaError, OSError) as error:
        why = f"it cannot be read ({error.strerror or error})" if isinstance(error, OSError) else error
        raise DatasetError(
            f"{file.path} cannot be used: {why}; replace or remove it, then scan the folder again."
        ) from error
    except MemoryError as error:
        raise DatasetError(
            f"{file.path} cannot be used: main memory is too small for {len(sample.frame_indices)} frames of "
            f"{sample.width}x{sample.height} in one sample; use fewer frames or a smaller size."
        ) from error
    return torch.from_numpy(frames)  # [F, H, W, 3]


def _check_unchanged(file: MediaFile, interrupt: Interrupt | None) -> list[int]:
    """The file's stamp, if its bytes are those that were scanned."""
    path = Path(file.path)
    check_plain_file(path)
    stamp = file_stamp(path)
    if hash_of(path, stamp, interrupt) != file.sha256:
        raise BadMediaError("it was changed since the folder was scanned")
    return stamp


def _read(sample: Sample, interrupt: Interrupt | None) -> np.ndarray:
    file = sample.file
    path = Path(file.path)
    wanted = sorted(set(sample.frame_indices))
    is_clip = path.suffix.lower() in CLIP_SUFFIXES
    bucket = (sample.width, sample.height)
    box = cover_box(file.width, file.height, bucket)

    def finish(item: tuple[int, VideoFrame | Image.Image]) -> tuple[int, np.ndarray]:
        index, frame = item
        image = frame if isinstance(frame, Image.Image) else frame_to_rgb(frame)
        with decoding("clip" if is_clip else "image"):
            return index, _resize(image, box, (file.width, file.height), bucket)

    images = read_clip(path, wanted, file.num_frames, interrupt) if is_clip else read_picture(path, wanted, interrupt)
    resized = dict(on_threads(finish, images, THREADS))
    return np.stack([resized[index] for index in sample.frame_indices])


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], displayed: tuple[int, int], bucket: tuple[int, int]
) -> np.ndarray:
    """`box` is in displayed pixels; the image's own pixels may not be square."""
    x, y = image.width / displayed[0], image.height / displayed[1]
    own_box = (box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
    return np.asarray(image.resize(bucket, Image.Resampling.LANCZOS, box=own_box))

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
from .media import CLIP_SUFFIXES, BadMediaError
from .pictures import read_picture
from .types import Sample

THREADS = min(4, os.cpu_count() or 1)  # that convert and scale a clip's frames while the next ones are decoded


def read_frames(sample: Sample) -> torch.Tensor:
    """A sample's frames, uint8 RGB [F, H, W, 3]: turned as displayed, scaled to cover the bucket, cut at its centre.

    Scaling is PIL's Lanczos (antialiased, the same on every machine), in one step with the cut. Transparency is laid on
    white. A clip is decoded from the keyframe before the window to the window's end. Raises DatasetError naming the
    file if it cannot be decoded or gives fewer frames than when it was scanned.
    """
    file = sample.file
    path = Path(file.path)
    wanted = sorted(set(sample.frame_indices))
    is_clip = path.suffix.lower() in CLIP_SUFFIXES
    bucket = (sample.width, sample.height)
    box = cover_box(file.width, file.height, bucket)

    def finish(item: tuple[int, VideoFrame | Image.Image]) -> tuple[int, np.ndarray]:
        index, frame = item
        image = frame if isinstance(frame, Image.Image) else frame_to_rgb(frame)
        return index, _resize(image, box, (file.width, file.height), bucket)

    images = read_clip(path, wanted, file.num_frames) if is_clip else read_picture(path, wanted)
    try:
        resized = dict(on_threads(finish, images, THREADS))
    except BadMediaError as error:
        raise DatasetError(
            f"{file.path} cannot be used: {error}; replace or remove it, then scan the folder again."
        ) from error
    return torch.from_numpy(np.stack([resized[index] for index in sample.frame_indices]))  # [F, H, W, 3]


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], displayed: tuple[int, int], bucket: tuple[int, int]
) -> np.ndarray:
    """`box` is in displayed pixels; the image's own pixels may not be square."""
    x, y = image.width / displayed[0], image.height / displayed[1]
    own_box = (box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
    return np.asarray(image.resize(bucket, Image.Resampling.LANCZOS, box=own_box))

"""What a model is shown of a file: some frames, small. Shapes: F frames, H W pixels."""

import math
from pathlib import Path

import torch

from ..data.decode import read_frames
from ..data.media import BadMediaError
from ..data.probe import Probe, probe_file
from ..data.types import MediaFile, Sample
from ..data.watch import Interrupt


def shown_frames(
    path: Path, num_frames: int, picture_size: int, interrupt: Interrupt | None = None
) -> tuple[torch.Tensor, bool]:
    """(frames [F, H, W, 3] uint8 RGB, whether the file is a clip); a picture has one frame.

    About picture_size x picture_size pixels with the file's aspect ratio, never scaled up. BadMediaError, or DatasetError, for
    a file that cannot be used.
    """
    probe = probe_file(path, interrupt)
    if probe.problem:
        raise BadMediaError(probe.problem)
    is_clip = probe.kind == "video"
    width, height = _shown_size(probe.width, probe.height, picture_size)
    indices = spread(len(probe.times_us), num_frames) if is_clip else (0,)
    sample = Sample(file=_media_file(path, probe), frame_indices=indices, width=width, height=height)
    return read_frames(sample, interrupt), is_clip


def spread(num_there: int, wanted: int) -> tuple[int, ...]:
    """Indices of at most `wanted` of `num_there` frames, evenly spread, each in the middle of its part of the clip."""
    count = min(num_there, wanted)
    return tuple((2 * part + 1) * num_there // (2 * count) for part in range(count))


def _shown_size(width: int, height: int, picture_size: int) -> tuple[int, int]:
    scale = min(1.0, picture_size / math.sqrt(width * height))
    return max(16, round(width * scale)), max(16, round(height * scale))


def _media_file(path: Path, probe: Probe) -> MediaFile:
    return MediaFile(
        path=str(path),
        name=path.name,
        sha256=probe.sha256,
        kind=probe.kind,
        width=probe.width,
        height=probe.height,
        num_frames=len(probe.times_us),
        fps=0.0,
        read_as=probe.read_as,
        caption="",
    )

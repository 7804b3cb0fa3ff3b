"""From a decoded frame of a clip to RGB, or to what is transparent in it."""

from collections.abc import Sequence

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from .colour import needs_sdr, to_sdr
from .media import decoding
from .pictures import on_white
from .reading import BT2020, HLG, P3, PQ

# Full chroma and accurate rounding: without them swscale's RGB is off by one or two levels. As numbers of swscale.h
# (SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT), because PyAV names them only since version 18.
_RESAMPLE = int(Interpolation.BICUBIC) | 0x40000 | 0x2000
_MATRICES = (1, 4, 5, 6, 7, 9)  # BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020 (libavutil/pixfmt.h)
_TRANSFERS = {16: PQ, 18: HLG}  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_PRIMARIES = {9: BT2020, 11: P3, 12: P3}  # AVCOL_PRI_BT2020, SMPTE431, SMPTE432


def colours_of(transfer: int, primaries: int) -> tuple[str, ...]:
    """What `READINGS` has for these numbers of libavutil/pixfmt.h; () for ordinary clips."""
    found = _TRANSFERS.get(transfer), _PRIMARIES.get(primaries)
    return tuple(name for name in found if name)


def has_alpha(frame: VideoFrame) -> bool:
    """Whether it can be transparent somewhere."""
    return any(component.is_alpha for component in frame.format.components)


def frame_to_rgb(frame: VideoFrame, read_as: Sequence[str] = ()) -> Image.Image:
    """8-bit full-range RGB, turned as displayed. Raises BadMediaError if the frame cannot be converted.

    Pixels are not square in some clips: the image then has the stored size, not the displayed one. Matrix and range are
    the tagged ones. Untagged clips follow the players' custom: BT.709 from 720 lines or 1280 columns on, BT.601 below,
    limited range. Alpha is laid on white. HDR and wide primaries, where `read_as` names them, are brought to BT.709's.
    """
    with decoding("clip"):
        if needs_sdr(tuple(read_as)):
            image = _turned(to_sdr(_converted(frame, "rgb48le"), tuple(read_as)), frame)
            if not has_alpha(frame):
                return image
            image.putalpha(frame_to_alpha(frame))
            return on_white(image)
        if has_alpha(frame):
            return on_white(_turned(_converted(frame, "rgba"), frame))
        return _turned(_converted(frame, "rgb24"), frame)


def frame_to_alpha(frame: VideoFrame) -> Image.Image:
    """Mode L, turned as displayed: 255 where nothing is transparent. Raises BadMediaError as `frame_to_rgb` does."""
    with decoding("clip"):
        if not has_alpha(frame):
            size = (frame.height, frame.width)
            return _turned(np.full(size, 255, np.uint8), frame)
        return _turned(_converted(frame, "rgba")[..., 3], frame)


def quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns from stored to displayed."""
    return round(frame.rotation / 90) % 4


def _converted(frame: VideoFrame, target: str) -> np.ndarray:
    if frame.format.is_rgb:
        return frame.reformat(format=target).to_ndarray()
    matrix = int(frame.colorspace)
    if matrix not in _MATRICES:
        large = frame.height >= 720 or frame.width >= 1280
        matrix = int(Colorspace.ITU709 if large else Colorspace.ITU601)
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return frame.reformat(
        format=target,
        src_colorspace=int(Colorspace.ITU601) if matrix == 6 else matrix,  # 6, SMPTE 170M, is BT.601's matrix
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_RESAMPLE,
    ).to_ndarray()


def _turned(pixels: np.ndarray, frame: VideoFrame) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, quarter_turns(frame))))

"""Clips through PyAV: true frame count and timestamps, a check that the end is really there, frames as displayed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image

from .media import BadMediaError, check_plain_file, decoding, each_decoded
from .pictures import on_white
from .watch import CLIP_PIXELS, MAX_FRAME_PIXELS, Interrupt, Work, check_span

# libav tells formats by content, not by name, and some of them name other files or addresses (playlists, sdp, concat).
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,ivf,nut,gif,dv,h264,hevc,av1,obu,rm"
_OPEN_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_OPEN_SECONDS = 120.0  # without an answer from the disk
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC, which PyAV names only since version 14
# Full chroma and accurate rounding: without them swscale's RGB is off by one or two levels. As numbers of swscale.h
# (SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT), because PyAV names them only since version 18.
_RESAMPLE = int(Interpolation.BICUBIC) | 0x40000 | 0x2000
_BLANK_BYTES = 64
_MATRICES = (1, 4, 5, 6, 7, 9)  # BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020 (libavutil/pixfmt.h)


@dataclass(frozen=True, kw_only=True)
class _Packets:
    """What demuxing alone tells about the video stream, in decoding order."""

    pts: tuple[int | None, ...]
    durations: tuple[int, ...]
    keyframes: tuple[bool, ...]

    @property
    def reliable(self) -> bool:
        """Every packet is one frame with its own time. Not so in avi with packed B-frames, for one."""
        return None not in self.pts and len(set(self.pts)) == len(self.pts)

    def last_keyframe_before(self, pts: int) -> int | None:
        """Time of the last keyframe at or before `pts`."""
        keys = [p for p, key in zip(self.pts, self.keyframes, strict=True) if key and p is not None and p <= pts]
        return max(keys, default=None)


def probe_clip(path: Path, interrupt: Interrupt | None = None) -> tuple[int, int, tuple[int, ...], int]:
    """(displayed width, height, start of each frame in microseconds from the first, end of the last).

    Demuxes the whole file without decoding, then decodes the first frame and everything from the last keyframe on. Only
    where packets and frames disagree is the whole clip decoded, and then the decoder is believed. Raises BadMediaError
    if the file breaks off, cannot be decoded, or takes more than the limits allow.
    """
    work = Work(interrupt, CLIP_PIXELS)
    with _open(path) as container:
        stream = _video_stream(container)
        packets = _demux(container, stream, work)
        clock = _clock(stream)
    if not packets.pts:
        raise BadMediaError("it holds no frames")
    with _open(path) as container:
        stream = _video_stream(container)
        first = next(_decode(container, stream, work), None)
        if first is None:
            raise BadMediaError("none of its frames can be decoded")
        with decoding("clip"):
            size = _displayed_size(first, stream.sample_aspect_ratio)
        first_pts, stored = first.pts, (first.width, first.height)
    pts = [p for p in packets.pts if p is not None]
    if packets.reliable and first_pts == min(pts) and _tail_decodes(path, packets, stored, work):
        times = sorted(pts)
        return *size, *_microseconds(times, packets.durations[packets.pts.index(times[-1])], *clock)
    work.expect(len(packets.pts), *stored)
    return *size, *_microseconds(_decode_times(path, len(packets.pts), work), 0, *clock)


def read_clip(
    path: Path, indices: Sequence[int], num_frames: int, interrupt: Interrupt | None = None
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (index, frame for `frame_to_rgb`) for ascending `indices` of a clip probed with `num_frames` frames.

    Starts at the keyframe before the first wanted frame and stops after the last one. Raises BadMediaError if a frame is
    damaged or missing, or if getting there takes more than the limits allow.
    """
    wanted = set(indices)
    num_read = 0
    for index, frame in _frames_from(path, indices[0], num_frames, Work(interrupt, CLIP_PIXELS)):
        if index in wanted:
            num_read += 1
            yield index, frame
        if index >= indices[-1]:
            break
    if num_read < len(wanted):
        raise BadMediaError(f"it gave {num_read} of {len(wanted)} wanted frames, fewer than when it was scanned")


def frame_to_rgb(frame: VideoFrame) -> Image.Image:
    """8-bit full-range RGB, turned as displayed. Raises BadMediaError if the frame cannot be converted.

    Pixels are not square in some clips: the image then has the stored size, not the displayed one. Matrix and range are
    the tagged ones. Untagged clips follow the players' custom: BT.709 from 720 lines or 1280 columns on, BT.601 below,
    limited range. Alpha is laid on white.
    """
    with decoding("clip"):
        return _to_rgb(frame)


def _to_rgb(frame: VideoFrame) -> Image.Image:
    target = "rgba" if any(component.is_alpha for component in frame.format.components) else "rgb24"
    if frame.format.is_rgb:
        converted = frame.reformat(format=target)
    else:
        matrix = int(frame.colorspace)
        if matrix not in _MATRICES:
            large = frame.height >= 720 or frame.width >= 1280
            matrix = int(Colorspace.ITU709 if large else Colorspace.ITU601)
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        converted = frame.reformat(
            format=target,
            src_colorspace=int(Colorspace.ITU601) if matrix == 6 else matrix,  # 6, SMPTE 170M, is BT.601's matrix
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=_RESAMPLE,
        )
    pixels = np.rot90(converted.to_ndarray(), _quarter_turns(frame))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return on_white(image) if target == "rgba" else image


def _open(path: Path) -> InputContainer:
    with decoding("clip"):
        check_plain_file(path)
        known = {"options": _OPEN_OPTIONS, "timeout": _OPEN_SECONDS}
        try:
            return av.open(str(path), metadata_errors="replace", **known)
        except TypeError:  # since PyAV 19 that is how it reads metadata anyway
            return av.open(str(path), **known)


def _video_stream(container: InputContainer) -> VideoStream:
    """The stream to read, ready to be decoded."""
    with decoding("clip"):
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise BadMediaError("it has no video stream, or the file is cut off")
        if stream.codec_context is None:
            raise BadMediaError("its video codec is not known here; convert it to H.264")
        if int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE:
            raise BadMediaError("it has no video stream but the picture of a cover")
        stream.thread_type = "AUTO"  # type: ignore[assignment]
        # Refused before memory is taken for it. PyAV copies the options when the decoder is opened.
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return stream


def _clock(stream: VideoStream) -> tuple[Fraction, Fraction]:
    """Seconds for one unit of the stream's times, and frames per second, both above 0."""
    with decoding("clip"):
        time_base, rate = stream.time_base, stream.average_rate
    return (
        time_base if time_base is not None and time_base > 0 else Fraction(1, 1000),
        rate if rate is not None and rate > 0 else Fraction(16),
    )


def _decode(container: InputContainer, stream: VideoStream, work: Work) -> Iterator[VideoFrame]:
    for frame in each_decoded("clip", container.decode(stream)):
        work.frame(frame.width, frame.height)
        yield frame


def _demux(container: InputContainer, stream: VideoStream, work: Work) -> _Packets:
    found = []
    for packet in each_decoded("clip", container.demux(stream)):
        work.packet()
        if packet.is_corrupt or _is_blank(packet):
            raise BadMediaError(f"the file breaks off after {len(found)} frames")
        if packet.size and not packet.is_discard:  # empty: a repeated frame or the flush; discard: cut by an edit list
            found.append((packet.pts, max(packet.duration or 0, 0), packet.is_keyframe))
    pts, durations, keyframes = zip(*found, strict=True) if found else ((), (), ())
    return _Packets(pts=pts, durations=durations, keyframes=keyframes)


def _is_blank(packet: Packet) -> bool:
    """Only zeros where a frame should begin, as in unfinished downloads; some decoders pass over it without a word."""
    is_raw = packet.stream.codec_context.name in ("rawvideo", "v210")  # where zeros are black
    return packet.size > _BLANK_BYTES and not is_raw and not any(bytes(memoryview(packet)[:_BLANK_BYTES]))


def _tail_decodes(path: Path, packets: _Packets, size: tuple[int, int], work: Work) -> bool:
    """True if the frames from the last keyframe to the end decode to exactly the times that the packets carry."""
    pts = [p for p in packets.pts if p is not None]
    key = packets.last_keyframe_before(max(pts))
    if key is None:
        return False
    expected = {p for p in pts if p >= key}
    work.expect(len(expected), *size)
    with _open(path) as container:
        stream = _video_stream(container)
        with decoding("clip"):
            container.seek(key, stream=stream)
        decoded = {frame.pts for frame in _decode(container, stream, work) if not frame.is_corrupt}
    # Frames shown before the keyframe but stored after it (open GOP) need the GOP before: not asked for here.
    return expected <= decoded


def _decode_times(path: Path, num_packets: int, work: Work) -> list[int] | int:
    """Decode everything: the frames' times in order, or only their number where the file gives no usable times."""
    pts = []
    with _open(path) as container:
        for frame in _decode(container, _video_stream(container), work):
            if frame.is_corrupt:
                raise BadMediaError(f"frame {len(pts)} is damaged")
            pts.append(frame.pts)
    if len(pts) < 0.9 * num_packets - 2:
        raise BadMediaError(f"only {len(pts)} of its {num_packets} frames can be decoded")
    increasing = None not in pts and all(a < b for a, b in pairwise(pts))
    return pts if increasing else len(pts)


def _microseconds(
    times: list[int] | int, last: int, time_base: Fraction, rate: Fraction
) -> tuple[tuple[int, ...], int]:
    """Frame starts and the end in microseconds from the first; `last`: the last frame's duration, 0 if unknown."""
    if isinstance(times, int):
        check_span(float(times / rate * 1_000_000))
        return tuple(round(i / rate * 1_000_000) for i in range(times)), round(times / rate * 1_000_000)
    if len(times) > 1:
        # A wrong duration of the last packet must not stretch the clip; without one the mean has to do.
        longest = max(b - a for a, b in pairwise(times))
        duration = Fraction(min(last, longest) if last else Fraction(times[-1] - times[0], len(times) - 1)) * time_base
    else:
        duration = last * time_base if last else 1 / rate
    end = ((times[-1] - times[0]) * time_base + duration) * 1_000_000
    check_span(float(end))
    return tuple(round((t - times[0]) * time_base * 1_000_000) for t in times), round(end)


def _frames_from(path: Path, first: int, num_frames: int, work: Work) -> Iterator[tuple[int, VideoFrame]]:
    """(index, frame) in display order, from a keyframe at or before frame `first`."""
    with _open(path) as container:
        packets = _demux(container, _video_stream(container), work)
    if first > 0 and packets.reliable and len(packets.pts) == num_frames:
        index_of = {pts: index for index, pts in enumerate(sorted(p for p in packets.pts if p is not None))}
        target = next(pts for pts, index in index_of.items() if index == first)
        key = packets.last_keyframe_before(target)
        with _open(path) as container:
            stream = _video_stream(container)
            if key is not None:
                with decoding("clip"):
                    container.seek(key, stream=stream)
            found = False
            for frame in _decode(container, stream, work):
                index = index_of.get(frame.pts) if frame.pts is not None else None
                if not found and (index is None or index > first):
                    break  # the seek landed elsewhere: count from the start instead
                if index is not None:
                    found = found or index == first
                    yield index, frame
            if found:
                return
    with _open(path) as container:
        yield from enumerate(_decode(container, _video_stream(container), work))


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns from stored to displayed."""
    return round(frame.rotation / 90) % 4


def _displayed_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    width, height = frame.width, frame.height
    if pixel_aspect and Fraction(1, 5) < pixel_aspect < 5:  # outside: a broken tag
        width = round(width * pixel_aspect)
    return (height, width) if _quarter_turns(frame) % 2 else (width, height)

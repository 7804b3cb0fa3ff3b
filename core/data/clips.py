"""Clips through PyAV: true frame count and timestamps, a check that the end is really there, frames as displayed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..words import counted
from .clip_pixels import colours_of, has_alpha, quarter_turns
from .fields import deinterlaced
from .media import BadMediaError, decoding, each_decoded
from .reading import INTERLACED, READINGS, VPX_ALPHA, Contents
from .streams import clock, decoded, hidden_alpha, open_clip, video_stream
from .watch import CLIP_PIXELS, Interrupt, Work, check_span

_BLANK_BYTES = 64
_ALPHA_NOT_READ = (
    "it is partly transparent, which can't be read here: what is hidden is trained; convert it to ProRes 4444"
)


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


def probe_clip(path: Path, interrupt: Interrupt | None = None) -> Contents:
    """What is in a clip.

    Demuxes the whole file without decoding, then decodes the first frame and everything from the last keyframe on. Only
    where packets and frames disagree is the whole clip decoded, and then the decoder is believed. Raises BadMediaError
    if the file breaks off, cannot be decoded, or takes more than the limits allow.
    """
    work = Work(interrupt, CLIP_PIXELS)
    with open_clip(path) as container:
        stream = video_stream(container)
        packets = _demux(container, stream, work)
        time_base, rate = clock(stream)
    if not packets.pts:
        raise BadMediaError("it holds no frames")
    first = _first_frame(path, work)
    pts = [p for p in packets.pts if p is not None]
    tail = _tail(path, packets, first.stored, work) if packets.reliable and first.pts == min(pts) else None
    if tail and tail.decodes:
        times = sorted(pts)
        when = _microseconds(times, packets.durations[packets.pts.index(times[-1])], time_base, rate)
    else:
        work.expect(len(packets.pts), *first.stored)
        when = _microseconds(_decode_times(path, len(packets.pts), work), 0, time_base, rate)
    is_interlaced = first.is_interlaced or (tail is not None and tail.is_interlaced)
    read_as = (*((INTERLACED,) if is_interlaced else ()), *first.read_as)
    return Contents(
        width=first.size[0],
        height=first.size[1],
        times_us=when[0],
        end_us=when[1],
        read_as=read_as,
        has_alpha=first.has_alpha,
        remarks=(*(READINGS[name] for name in read_as), *first.remarks),
    )


@dataclass(frozen=True, kw_only=True)
class _First:
    """What the first frame of a clip tells."""

    pts: int | None
    stored: tuple[int, int]
    size: tuple[int, int]  # as displayed
    is_interlaced: bool
    has_alpha: bool
    read_as: tuple[str, ...]
    remarks: tuple[str, ...]


def _first_frame(path: Path, work: Work) -> _First:
    with open_clip(path) as container:
        stream = video_stream(container)
        with decoding("clip"):
            is_hidden, can_be_read = hidden_alpha(stream)
            context = stream.codec_context
        read_as = (VPX_ALPHA,) if can_be_read else ()
        frame = next(decoded(container, stream, work, read_as), None)
        if frame is None:
            raise BadMediaError("none of its frames can be decoded")
        with decoding("clip"):
            return _First(
                pts=frame.pts,
                stored=(frame.width, frame.height),
                size=_displayed_size(frame, stream.sample_aspect_ratio),
                is_interlaced=bool(frame.interlaced_frame),
                has_alpha=has_alpha(frame),
                read_as=(*read_as, *colours_of(int(context.color_trc), int(context.color_primaries))),
                remarks=(_ALPHA_NOT_READ,) if is_hidden and not can_be_read else (),
            )


def read_clip(
    path: Path,
    indices: Sequence[int],
    num_frames: int,
    interrupt: Interrupt | None = None,
    *,
    read_as: tuple[str, ...] = (),
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (index, frame for `frame_to_rgb`) for ascending `indices` of a clip probed with `num_frames` frames.

    Starts at the keyframe before the first wanted frame and stops after the last one. Raises BadMediaError if a frame is
    damaged or missing, or if getting there takes more than the limits allow.
    """
    wanted = set(indices)
    num_read = 0
    is_interlaced = INTERLACED in read_as
    # A half picture is completed from the frames before and after.
    start = max(0, indices[0] - 1) if is_interlaced else indices[0]
    frames = _frames_from(path, start, num_frames, Work(interrupt, CLIP_PIXELS), read_as)
    for index, frame in deinterlaced(frames) if is_interlaced else frames:
        if index in wanted:
            num_read += 1
            yield index, frame
        if index >= indices[-1]:
            break
    if num_read < len(wanted):
        raise BadMediaError(f"it gave {num_read} of {len(wanted)} wanted frames, fewer than when it was scanned")


def _demux(container: InputContainer, stream: VideoStream, work: Work) -> _Packets:
    found = []
    for packet in each_decoded("clip", container.demux(stream)):
        work.packet()
        if packet.is_corrupt or _is_blank(packet):
            raise BadMediaError(f"the file breaks off after {counted(len(found), 'frame')}")
        if packet.size and not packet.is_discard:  # empty: a repeated frame or the flush; discard: cut by an edit list
            found.append((packet.pts, max(packet.duration or 0, 0), packet.is_keyframe))
    pts, durations, keyframes = zip(*found, strict=True) if found else ((), (), ())
    return _Packets(pts=pts, durations=durations, keyframes=keyframes)


def _is_blank(packet: Packet) -> bool:
    """Only zeros where a frame should begin, as in unfinished downloads; some decoders pass over it without a word."""
    is_raw = packet.stream.codec_context.name in ("rawvideo", "v210")  # where zeros are black
    return packet.size > _BLANK_BYTES and not is_raw and not any(bytes(memoryview(packet)[:_BLANK_BYTES]))


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """What the frames from the last keyframe to the end tell."""

    decodes: bool  # to exactly the times that the packets carry
    is_interlaced: bool = False  # one of them


def _tail(path: Path, packets: _Packets, size: tuple[int, int], work: Work) -> _Tail:
    pts = [p for p in packets.pts if p is not None]
    key = packets.last_keyframe_before(max(pts))
    if key is None:
        return _Tail(decodes=False)
    expected = {p for p in pts if p >= key}
    work.expect(len(expected), *size)
    with open_clip(path) as container:
        stream = video_stream(container)
        with decoding("clip"):
            container.seek(key, stream=stream)
        frames = [(f.pts, bool(f.interlaced_frame)) for f in decoded(container, stream, work) if not f.is_corrupt]
    # Frames shown before the keyframe but stored after it (open GOP) need the GOP before: not asked for here.
    return _Tail(decodes=expected <= {pts for pts, _ in frames}, is_interlaced=any(one for _, one in frames))


def _decode_times(path: Path, num_packets: int, work: Work) -> list[int] | int:
    """Decode everything: the frames' times in order, or only their number where the file gives no usable times."""
    pts = []
    with open_clip(path) as container:
        for frame in decoded(container, video_stream(container), work):
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


def _frames_from(
    path: Path, first: int, num_frames: int, work: Work, read_as: tuple[str, ...]
) -> Iterator[tuple[int, VideoFrame]]:
    """(index, frame) in display order, from a keyframe at or before frame `first`."""
    with open_clip(path) as container:
        packets = _demux(container, video_stream(container), work)
    if first > 0 and packets.reliable and len(packets.pts) == num_frames:
        index_of = {pts: index for index, pts in enumerate(sorted(p for p in packets.pts if p is not None))}
        target = next(pts for pts, index in index_of.items() if index == first)
        key = packets.last_keyframe_before(target)
        with open_clip(path) as container:
            stream = video_stream(container)
            if key is not None:
                with decoding("clip"):
                    container.seek(key, stream=stream)
            found = False
            for frame in decoded(container, stream, work, read_as):
                index = index_of.get(frame.pts) if frame.pts is not None else None
                if not found and (index is None or index > first):
                    break  # the seek landed elsewhere: count from the start instead
                if index is not None:
                    found = found or index == first
                    yield index, frame
            if found:
                return
    with open_clip(path) as container:
        yield from enumerate(decoded(container, video_stream(container), work, read_as))


def _displayed_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    width, height = frame.width, frame.height
    if pixel_aspect and Fraction(1, 5) < pixel_aspect < 5:  # outside: a broken tag
        width = round(width * pixel_aspect)
    return (height, width) if quarter_turns(frame) % 2 else (width, height)

"""Opening a clip's video stream, and decoding it: with the decoder that sees what is transparent, where one is needed."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec import codecs_available
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .media import BadMediaError, check_plain_file, decoding, each_decoded
from .reading import VPX_ALPHA
from .watch import MAX_FRAME_PIXELS, Work

# libav tells formats by content, not by name, and some of them name other files or addresses (playlists, sdp, concat).
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,ivf,nut,gif,dv,h264,hevc,av1,obu,rm"
_OPEN_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_OPEN_SECONDS = 120.0  # without an answer from the disk
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC, which PyAV names only since version 14
# FFmpeg's own decoders of VP8 and VP9 leave the transparent part of a WebM file out; those of libvpx read it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_DECODER_OPTIONS = {"max_pixels": str(MAX_FRAME_PIXELS)}  # refused before memory is taken for it


def open_clip(path: Path) -> InputContainer:
    """The container; BadMediaError for what is none. The caller closes it."""
    with decoding("clip"):
        check_plain_file(path)
        known = {"options": _OPEN_OPTIONS, "timeout": _OPEN_SECONDS}
        try:
            return av.open(str(path), metadata_errors="replace", **known)
        except TypeError:  # since PyAV 19 that is how it reads metadata anyway
            return av.open(str(path), **known)


def video_stream(container: InputContainer) -> VideoStream:
    """The stream to read, ready to be decoded; never the picture of a cover."""
    with decoding("clip"):
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise BadMediaError("it has no video stream, or the file is cut off")
        if _is_cover(stream):
            others = [other for other in container.streams.video if not _is_cover(other)]
            if not others:
                raise BadMediaError("it has no video stream but the picture of a cover")
            stream = others[0]
        if stream.codec_context is None:
            raise BadMediaError("its video codec is not known here; convert it to H.264")
        stream.thread_type = "AUTO"  # type: ignore[assignment]
        stream.codec_context.options = _DECODER_OPTIONS  # PyAV copies them when the decoder is opened
    return stream


def clock(stream: VideoStream) -> tuple[Fraction, Fraction]:
    """Seconds for one unit of the stream's times, and frames per second, both above 0."""
    with decoding("clip"):
        time_base, rate = stream.time_base, stream.average_rate
    return (
        time_base if time_base is not None and time_base > 0 else Fraction(1, 1000),
        rate if rate is not None and rate > 0 else Fraction(16),
    )


def hidden_alpha(stream: VideoStream) -> tuple[bool, bool]:
    """Whether the stream says that it has an alpha which ordinary decoding leaves out, and whether it can be read here."""
    decoder = _ALPHA_DECODERS.get(stream.codec_context.name)
    told = {name.lower(): value for name, value in stream.metadata.items()}
    says_so = decoder is not None and told.get("alpha_mode") == "1"  # WebM's AlphaMode
    return says_so, says_so and decoder in codecs_available


def decoded(
    container: InputContainer, stream: VideoStream, work: Work, read_as: tuple[str, ...] = ()
) -> Iterator[VideoFrame]:
    """The frames from here on, counted by `work`."""
    frames = _with_alpha(container, stream) if VPX_ALPHA in read_as else container.decode(stream)
    for frame in each_decoded("clip", frames):
        work.frame(frame.width, frame.height)
        yield frame


def _with_alpha(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """As `container.decode`, by libvpx."""
    context: Any = VideoCodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")
    context.options = _DECODER_OPTIONS
    for packet in container.demux(stream):
        if packet.size:
            yield from context.decode(packet)
    yield from context.decode(None)


def _is_cover(stream: VideoStream) -> bool:
    disposition = getattr(stream, "disposition", 0)
    number = getattr(disposition, "value", disposition)  # a Flag, which is no number in some versions of PyAV
    return bool(int(number) & _ATTACHED_PICTURE)

"""Which files count as media, and whether a container is as long as it says it is (read from its own size fields)."""

import errno
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

T = TypeVar("T")

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif"})  # read by PIL
CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})  # read by PyAV
MEDIA_SUFFIXES = PICTURE_SUFFIXES | CLIP_SUFFIXES

_EBML_HEADER, _EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ISO_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


# Errors of the disk or the machine, not of the file: they may be gone at the next try.
_PASSING = {errno.EIO, errno.ENOENT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EAGAIN} | {
    getattr(errno, "ESTALE", errno.EIO)
}
_MAX_REASON = 300  # letters of a library's message
_MAX_PARTS = 1_000_000  # boxes of a file that are looked at; a fragmented hour has 10,000


class BadMediaError(Exception):
    """Why one file cannot be used, as a clause that reads well after the file's name and a colon."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing  # it may be usable at the next try, unchanged


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Around calls of a decoder of `what` ("clip", "image"): whatever it raises becomes a BadMediaError.

    On damaged bytes decoders raise nearly anything (IndexError, SyntaxError, struct.error, ...): no list is complete.
    """
    try:
        yield
    except BadMediaError:
        raise
    except Exception as error:
        raise _undecodable(what, error) from error


def each_decoded(what: str, items: Iterable[T]) -> Iterator[T]:
    """The items of a decoder's iterator, under the same guard as `decoding`; what their user raises is left alone."""
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except BadMediaError:
            raise
        except Exception as error:
            raise _undecodable(what, error) from error
        yield item


def check_plain_file(path: Path) -> None:
    """BadMediaError for anything but a file, such as a named pipe, which would be waited on for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadMediaError("it is not a plain file but a folder, pipe or device")


def missing_bytes(path: Path, look: Callable[[], object] = lambda: None) -> int:
    """Bytes that the file's own size fields promise beyond its end; 0 if it is whole or makes no promise.

    Knows ISO media (mp4, mov, m4v, avif; ISO/IEC 14496-12), Matroska and WebM (RFC 9559), RIFF (avi, webp) and GIF,
    whose missing trailer counts as one byte. Reads headers only, never the payload. `look` is called between the parts
    of a file, and may raise to abort.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        check = _checker(head)
        return max(0, check(file, size, look)) if check else 0


def _undecodable(what: str, error: Exception) -> BadMediaError:
    if type(error).__name__ == "UnidentifiedImageError":  # PIL's text repeats the path
        text = "not an image of a known format, or cut off"
    else:
        text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING)
    return BadMediaError(f"the {what} cannot be decoded ({text[:_MAX_REASON]})", passing=passing)


def _checker(head: bytes) -> Callable[[BinaryIO, int, Callable[[], object]], int] | None:
    if head[4:8] in _ISO_FIRST_BOXES:
        return _missing_in_iso
    if head[:4] == _EBML_HEADER:
        return _missing_in_matroska
    if head[:4] == b"RIFF":
        return _missing_in_riff
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _missing_in_gif
    return None


def _missing_in_iso(file: BinaryIO, size: int, look: Callable[[], object]) -> int:
    position = 0
    for _ in range(_MAX_PARTS):
        if position + 8 > size:
            break
        look()
        file.seek(position)
        header = file.read(16)
        length, box = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0: the box runs to the end of the file; anything else is not a box
            return 0
        position += length
        # Some programs append bytes that are no box: only boxes that matter can be missed.
        if position > size and box in (b"ftyp", b"moov", b"mdat", b"moof", b"meta"):
            return position - size
    return 0


def _missing_in_matroska(file: BinaryIO, size: int, look: Callable[[], object]) -> int:
    look()
    file.seek(4)
    header_size = _vint(file)
    if header_size is None or header_size > size:
        return 0
    file.seek(header_size, 1)
    if file.read(4) != _EBML_SEGMENT:
        return 0
    segment_size = _vint(file)
    return 0 if segment_size is None else file.tell() + segment_size - size


def _vint(file: BinaryIO) -> int | None:
    """Next EBML size; None for the reserved value "unknown" (a live recording) and at the end of the file."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(first + rest, "big") & ((1 << 7 * length) - 1)
    return None if len(rest) < length - 1 or value == (1 << 7 * length) - 1 else value


def _missing_in_riff(file: BinaryIO, size: int, look: Callable[[], object]) -> int:
    look()
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return 8 + length - size if length else 0  # 0: the recorder never came back to fill it in


def _missing_in_gif(file: BinaryIO, size: int, look: Callable[[], object]) -> int:
    file.seek(10)
    flags = file.read(3)[:1]
    _skip_colour_table(file, flags)
    while True:
        look()
        kind = file.read(1)
        if kind == b"\x3b":
            return 0
        if kind == b"\x2c":  # image: descriptor, its colour table, the LZW code size
            _skip_colour_table(file, file.read(9)[8:])
            file.seek(1, 1)
        elif kind == b"\x21":  # extension: its label
            file.seek(1, 1)
        else:  # the end of the file, or bytes that no GIF reader understands
            return 0 if kind and file.tell() < size else 1
        while length := file.read(1):
            if length == b"\x00":
                break
            file.seek(length[0], 1)


def _skip_colour_table(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, 1)

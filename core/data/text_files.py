"""Text files as people have them: in any of the usual encodings, told by their marks or by their letters."""

import codecs
from pathlib import Path

from .media import BadMediaError, check_plain_file

MAX_CAPTION_BYTES = 2**20  # the model takes 512 tokens
_ZEROS = 0.7  # of the high bytes of a text that is mostly Latin
_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (  # the first bytes of files that are sometimes given a text file's name
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or an AVI clip"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM clip"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{\\rtf", "a document in rich text; save it as plain text"),
)


def read_text_file(path: Path, most_bytes: int = MAX_CAPTION_BYTES) -> tuple[str, str]:
    """(the text, what there is to tell of the file, or "").

    UTF-8, UTF-16 or UTF-32, with a mark or without, else Windows-1252, which older Windows editors write. Letters of the
    value 0 are left out. Raises BadMediaError if the file cannot be read, has more than `most_bytes`, or is no text.
    """
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise BadMediaError(f"it cannot be read ({error.strerror or error})") from error
    kind = next((kind for start, kind in _NO_TEXT if data.startswith(start)), "")
    if not kind and data[4:8] == b"ftyp":
        kind = "an MP4 or MOV clip"
    if kind:
        raise BadMediaError(f"it is no text file but {kind}")
    if len(data) > most_bytes:
        raise BadMediaError(
            f"it has more than {most_bytes} bytes, far more than the model takes of a caption: shorten it"
        )
    text, told = _decode(data)
    if "\0" in text:
        text, told = text.replace("\0", ""), "holds letters of the value 0, which were left out"
    return text, told


def _decode(data: bytes) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), ""
    encoding = _wide_encoding(data)
    if encoding:
        return data.decode(encoding), f"has no mark and was read as {encoding.upper()}"
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return data.decode(
            "cp1252", errors="replace"
        ), "is not UTF-8 and was read as Windows-1252: look at it, and save it as UTF-8"


def _wide_encoding(data: bytes) -> str:
    """The UTF-32 or UTF-16 that text without a mark is in: most of its letters' high bytes are zeros."""
    for encoding, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        high = data[width - 1 :: width] if encoding.endswith("le") else data[::width]
        low = data[::width] if encoding.endswith("le") else data[width - 1 :: width]
        if (
            len(data) % width
            or not data
            or high.count(0) < len(high) * _ZEROS
            or low.count(0) > len(low) * (1 - _ZEROS)
        ):
            continue
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return ""

"""Captions: reading sidecar files, the default caption, and the trigger word."""

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError
from ..limits import MAX_TEXT, MAX_WORD
from ..settings.dataset import DatasetOptions
from .media import BadMediaError, check_plain_file
from .types import Note

_MAX_BYTES = 2**20  # the model takes 512 tokens
_ZEROS = 0.7  # of the high bytes of a text that is mostly Latin
_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PLACEHOLDER = re.compile(r"\[trigger\]", re.IGNORECASE)


def read_caption(path: Path) -> tuple[str, str]:
    """(caption with runs of whitespace made one space, what there is to tell of the file, or "").

    UTF-8, UTF-16 or UTF-32, with a mark or without, else Windows-1252, which older Windows editors write. Letters of the
    value 0 are left out. Raises BadMediaError if the file cannot be read, or is far too large for a caption.
    """
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadMediaError(f"it cannot be read ({error.strerror or error})") from error
    if len(data) > _MAX_BYTES:
        raise BadMediaError(
            f"it has more than {_MAX_BYTES} bytes, far more than the model takes of a caption: shorten it"
        )
    text, told = _decode(data)
    if "\0" in text:
        text, told = text.replace("\0", ""), "holds letters of the value 0, which were left out"
    text = _collapse(text)
    most = MAX_TEXT - MAX_WORD - 1  # with room for a trigger word in front
    if len(text) > most:
        raise BadMediaError(
            f"it has {len(text)} characters, and {most} are the most; the model takes some 2000: shorten it"
        )
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
        return data.decode("cp1252", errors="replace"), "is not UTF-8 and was read as Windows-1252"


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


def apply_trigger(caption: str, trigger_word: str, name: str) -> str:
    """Put the trigger word in place of [trigger], or in front if the caption has neither; `name` is for the error."""
    trigger = _collapse(trigger_word)
    if _PLACEHOLDER.search(caption):
        if not trigger:
            raise DatasetError(
                f"The caption of {name} contains [trigger], but no trigger word is set: set trigger_word; or, since a "
                "regularization set has none, write a plain word there."
            )
        return _collapse(_PLACEHOLDER.sub(lambda _: trigger, caption))
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def assign_captions(
    names: Sequence[str], sidecars: Mapping[str, Path], options: DatasetOptions
) -> tuple[dict[str, str], list[Note]]:
    """Caption of every media file that has one, by name, and notes on the others.

    `sidecars` maps a name to its caption file. Without a caption (no file, or an empty one) a file takes
    default_caption, else the trigger word alone, else it is dropped with a note, or refused with options.bad_files
    "refuse". Raises DatasetError if no file at all has a caption.
    """
    captions, missing, notes = {}, {}, []
    default = _collapse(options.default_caption)
    for name in names:
        text, why = "", f"no caption file {Path(name).stem}{extension(options)} next to it"
        if name in sidecars:
            text, why, told = _read_sidecar(sidecars[name])
            if told and (text or default):  # else it is dropped, and told why
                notes.append(Note(name=name, action="note", reason=f"its caption file {sidecars[name].name} {told}"))
        if not text and not default:
            missing[name] = why
        captions[name] = apply_trigger(text or default, options.trigger_word, name)
    if not any(captions.values()):
        raise DatasetError(
            f"no captions: none of the {len(captions)} files has a caption ({names[0]}: {missing[names[0]]}); write "
            f"one {extension(options)} file per image or clip, or set a default caption or a trigger word."
        )
    for name, why in missing.items():
        if captions[name]:
            notes.append(Note(name=name, action="note", reason=f"{why}: the trigger word alone is its caption"))
        elif options.bad_files == "refuse":
            raise DatasetError(
                f"{name} cannot be used: {why}; write one, set a default caption, or let bad files be skipped."
            )
        else:
            notes.append(Note(name=name, action="dropped", reason=f"{why}, and no default caption is set"))
            del captions[name]
    return captions, notes


def _read_sidecar(path: Path) -> tuple[str, str, str]:
    """(the caption, why there is none, what there is to tell)."""
    try:
        text, told = read_caption(path)
    except BadMediaError as error:
        return "", f"its caption file {path.name} cannot be used: {error}", f"cannot be used: {error}"
    return text, f"its caption file {path.name} is empty", told


def extension(options: DatasetOptions) -> str:
    """The caption extension in lower case, with its dot."""
    return "." + options.caption_extension.lower().lstrip(".")


def _collapse(text: str) -> str:
    return " ".join(text.split())

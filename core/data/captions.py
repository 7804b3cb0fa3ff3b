"""Captions: reading sidecar files, the default caption, and the trigger word."""

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError
from .types import DatasetOptions, Note

_PLACEHOLDER = re.compile(r"\[trigger\]", re.IGNORECASE)


def read_caption(path: Path) -> tuple[str, bool]:
    """(caption with runs of whitespace made one space, was it something other than UTF-8?).

    UTF-8 with or without BOM, UTF-16 with BOM, else Windows-1252, which older Windows editors write.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _collapse(data.decode("utf-16", errors="replace")), False
    try:
        return _collapse(data.decode("utf-8-sig")), False
    except UnicodeDecodeError:
        return _collapse(data.decode("cp1252", errors="replace")), True


def apply_trigger(caption: str, trigger_word: str, name: str) -> str:
    """Put the trigger word in place of [trigger], or in front if the caption has neither; `name` is for the error."""
    trigger = _collapse(trigger_word)
    if _PLACEHOLDER.search(caption):
        if not trigger:
            raise DatasetError(
                f"The caption of {name} contains [trigger], but no trigger word is set: set trigger_word."
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
        text, why = "", f"no caption file {Path(name).with_suffix(extension(options)).name} next to it"
        if name in sidecars:
            text, was_cp1252 = read_caption(sidecars[name])
            why = f"its caption file {sidecars[name].name} is empty"
            if was_cp1252:
                reason = f"its caption file {sidecars[name].name} is not UTF-8 and was read as Windows-1252"
                notes.append(Note(name=name, action="note", reason=reason))
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


def extension(options: DatasetOptions) -> str:
    """The caption extension in lower case, with its dot."""
    return "." + options.caption_extension.lower().lstrip(".")


def _collapse(text: str) -> str:
    return " ".join(text.split())

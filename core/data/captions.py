"""Captions: from sidecar files, one file for all, names or the trigger word alone; the default caption; the trigger word."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError
from ..limits import HALF_LETTER, MAX_TEXT, MAX_WORD
from ..prompts import apply_trigger
from ..settings.dataset import DatasetOptions
from .media import BadMediaError
from .metadata_files import Listed, captions_in_json
from .tags import tag_variants
from .text_files import read_text_file
from .types import Note

_MOST = MAX_TEXT - MAX_WORD - 1  # characters, with room for a trigger word in front

Texts = tuple[list[str], str, str]  # captions, why there are none, what there is to tell


def read_captions(path: Path, options: DatasetOptions) -> tuple[list[str], str]:
    """(captions in a caption file with runs of whitespace made one space, what there is to tell of the file, or "").

    None for an empty file. Raises BadMediaError if the file cannot be read, or is far too large for a caption.
    """
    text, told = read_text_file(path)
    suffix = path.suffix.lower()
    found = captions_in_json(text, by_line=suffix == ".jsonl") if suffix in (".json", ".jsonl") else [text]
    return _cleaned(found, options), told


def assign_captions(
    names: Sequence[str],
    sidecars: Mapping[str, Path],
    options: DatasetOptions,
    listed: Listed | None = None,
    *,
    unread: str = "",
) -> tuple[dict[str, tuple[str, ...]], list[Note]]:
    """Captions of every media file that has any, by name, and notes on the others.

    The first of a file's captions is its caption; one of all of them is drawn at each step. `sidecars` maps a name to its
    caption file; `listed`: what the metadata file says, where captions come from one; `unread`: a metadata file that is there
    and is not used. Without a caption (no file, or an empty one) a file takes default_caption, else the trigger word alone,
    else it is dropped with a note, or refused with options.bad_files "refuse". DatasetError if no file has any.
    """
    captions, missing, notes, further = {}, {}, list(listed.notes if listed else ()), 0
    default, texts_of = _collapse(options.default_caption), _reader(sidecars, options, listed)
    for name in names:
        texts, why, told = texts_of(name)
        if told and (texts or default):  # else it is dropped, and told why
            notes.append(Note(name=name, action="note", reason=told))
        if not texts and not default and options.caption_source != "trigger":
            missing[name] = why
        captions[name] = _all_captions(texts or [default], options, name)
        further += len(captions[name]) - len(dict.fromkeys(texts or [default]))
    if options.makes_variants and further <= 0:
        reason = f"no caption is a list of tags with '{options.tag_separator.strip()}' between them: shuffle_tags and "
        notes.append(Note(name="captions", action="note", reason=f"{reason}tag_dropout change nothing"))
    if not any(map(any, captions.values())):
        none = f"none of the {len(captions)} files has a caption" if len(captions) > 1 else "the only file has none"
        raise DatasetError(
            f"no captions: {none} ({names[0]}: {missing[names[0]]}); "
            f"{_how_to_write(options, unread)}, or set a default caption or a trigger word."
        )
    for name, why in missing.items():
        if any(captions[name]):
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


def _reader(sidecars: Mapping[str, Path], options: DatasetOptions, listed: Listed | None) -> Callable[[str], Texts]:
    """What gives the texts of a media file by its name."""

    def from_sidecar(name: str) -> Texts:
        if name not in sidecars:
            return [], f"no caption file {Path(name).stem}{extension(options)} next to it", ""
        called = f"its caption file {sidecars[name].name}"
        try:
            texts, told = read_captions(sidecars[name], options)
        except BadMediaError as error:
            return [], f"{called} cannot be used: {error}", f"{called} cannot be used: {error}"
        return texts, f"{called} is empty", f"{called} {told}" if told else ""

    def from_metadata(name: str) -> Texts:
        assert listed is not None
        if name not in listed.captions:
            return [], f"{listed.name} has no entry for it", ""
        try:
            return _cleaned(listed.captions[name], options), f"its caption in {listed.name} is empty", ""
        except BadMediaError as error:
            problem = f"its caption in {listed.name} cannot be used: {error}"
            return [], problem, problem

    def from_name(name: str) -> Texts:
        return _cleaned([re.sub("[_-]", " ", Path(name).stem)], options), "its name holds no words", ""

    def from_trigger(_: str) -> Texts:
        return [_collapse(options.trigger_word)], "", ""

    return {"sidecar": from_sidecar, "metadata": from_metadata, "filename": from_name, "trigger": from_trigger}[
        options.caption_source
    ]


def _all_captions(texts: Sequence[str], options: DatasetOptions, name: str) -> tuple[str, ...]:
    """The texts with their variants and the trigger word, each once."""
    further = [variant for text in texts for variant in tag_variants(text, options)]
    advice = "set trigger_word"
    if options.regularization:
        advice = "a regularization set has none, so write a plain word in its place"
    made = (apply_trigger(text, options.trigger_word, name, advice=advice) for text in (*texts, *further))
    return tuple(dict.fromkeys(made))


def _cleaned(texts: Sequence[str], options: DatasetOptions) -> list[str]:
    """Captions without the whitespace around and between their words; BadMediaError for one that is too long."""
    parts = [part for text in texts for part in (text.splitlines() if options.caption_lines == "separate" else [text])]
    found = [text for part in parts if (text := _collapse(part))]
    for text in found:
        if len(text) > _MOST:
            raise BadMediaError(
                f"it has {len(text)} characters, and {_MOST} are the most; the model takes some 2000: shorten it"
            )
        if HALF_LETTER.search(text):
            raise BadMediaError("it holds halves of letters (\\ud800 to \\udfff), which are no text: write it anew")
    return found


def _how_to_write(options: DatasetOptions, unread: str) -> str:
    if options.caption_source == "metadata":
        return "name the files of the folder in it, each with its caption"
    if options.caption_source == "filename":
        return "give the files names of words"
    if unread:
        return f"set caption_source to 'metadata' to take them from {unread}"
    return f"write one {extension(options)} file per image or clip"


def _collapse(text: str) -> str:
    return " ".join(text.split())

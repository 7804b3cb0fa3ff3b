"""What a scan found, as text for people."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from ..words import counted
from .counting import Length, batches_of, describe_epoch
from .join import join_warnings, split
from .types import Dataset, JoinedPart, Note, Sample

_NAMES = 2  # of a long group of notes
_ENDING = re.compile(r"([-_]\w+)?\.[^\W\d]")  # of a file, behind its name
_IN_WORD = re.compile(r"\w$")


def list_notes(notes: Sequence[Note], limit: int | None = 30) -> str:
    """The notes, one a line, those that differ by the file's name alone in one; the first `limit` lines, or all with None.

    With a limit a long line names the first files only; without, all of them. A file of the same name that a note tells of,
    as a caption file, is NAME.txt in a line of several.
    """
    groups: dict[tuple[str, str], list[Note]] = {}
    for note in notes:
        groups.setdefault((note.action, _without_name(note)), []).append(note)
    lines = [_line(of_group, reason, limit) for (_, reason), of_group in groups.items()]
    shown = lines[:limit]
    if len(lines) > len(shown):
        shown.append(f"- ... and {len(lines) - len(shown)} more (all of them are in the server's log)")
    return "\n".join(shown)


def _without_name(note: Note) -> str:
    """The reason, where files that are called as the note's own have NAME in the place of that."""
    stem = PurePosixPath(note.name).stem
    first, *rest = note.reason.split(stem) if stem else [note.reason]
    found = first
    for before, after in zip((first, *rest), rest, strict=False):
        is_name = _ENDING.match(after) and not _IN_WORD.search(before)
        found += ("NAME" if is_name else stem) + after
    return found


def _line(notes: Sequence[Note], reason: str, limit: int | None) -> str:
    names, action = [note.where for note in notes], notes[0].action
    if len(notes) == 1:
        return f"- {notes[0]}"
    shown = names if limit is None or len(names) <= _NAMES + 1 else names[:_NAMES]
    rest = f", ... and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"- {len(names)} files: {action}: {reason}: {', '.join(shown)}{rest}"


def describe_dataset(dataset: Dataset, limit: int | None = 30, lengths: Sequence[str] | None = None) -> str:
    """What was found, in how many buckets, options without effect, and everything that was dropped, cut or changed.

    Of joined datasets a line each, then the sum. `lengths`: what is said of epochs and steps; None: what an epoch is
    with batch_size 1.
    """
    lines = [describe_part(part, samples) for part, samples in split(dataset)] if dataset.parts else []
    lines += [
        f"{'together: ' if dataset.parts else ''}{_amounts(dataset.samples)}",
        f"buckets: {_buckets(dataset.samples)}",
    ]
    lines += [describe_epoch(Length(batches=batches_of(dataset)))] if lengths is None else lengths
    for part in dataset.sources:
        of = f"{part.name}: " if part.name else ""
        lines += [f"- {of}{sentence}" for sentence in part.options.warnings()]
    lines += [f"- {sentence}" for sentence in join_warnings(dataset)]
    if dataset.notes:
        lines.append(list_notes(dataset.notes, limit))
    return "\n".join(lines)


def describe_part(part: JoinedPart, samples: Sequence[Sample]) -> str:
    """One of several datasets, in a line."""
    options = part.options
    facts = [_amounts(samples), f"buckets {_buckets(samples)}", f"loss weight {options.loss_weight:g}"]
    if options.trigger:
        facts.append(f"trigger word {options.trigger}")
        facts += [f"class word {options.class_word}"] if options.class_word else []
    if options.regularization:
        facts.append("keeps what the model knows")
    return f"{part.name}: {'; '.join(facts)}"


def _amounts(samples: Sequence[Sample]) -> str:
    files = {(s.dataset, s.file.path): s.file.kind for s in samples}
    kinds = Counter(files.values())
    held_out = sum(s.held_out for s in samples)
    training = sum(s.repeats for s in samples if not s.held_out)
    files_of = f"{counted(kinds['video'], 'clip')}, {counted(kinds['image'], 'image')}"
    return f"{files_of}: {counted(training, 'sample')} an epoch" + (f", {held_out} held out" if held_out else "")


def _buckets(samples: Sequence[Sample]) -> str:
    buckets = Counter((s.width, s.height, len(s.frame_indices)) for s in samples)
    return ", ".join(f"{w}x{h}x{f} ({n})" for (w, h, f), n in sorted(buckets.items()))

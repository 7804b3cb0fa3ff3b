"""Writes the captions that are missing in a folder, with whatever model is given. Shapes: F frames, H W pixels."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from ..data.folder import check_folder, find_files
from ..data.masks import look_like_masks
from ..data.media import BadMediaError, check_plain_file
from ..data.types import Note
from ..data.watch import Interrupt
from ..disk import write_atomic
from ..errors import DatasetError
from ..limits import MAX_TEXT, MAX_WORD
from ..settings.captioning import CaptioningOptions
from ..settings.dataset import DatasetOptions
from ..words import counted
from .frames import shown_frames
from .questions import caption_of, question_for
from .written import MachineCaptions

_MOST_BYTES = 2**20
_MOST_LETTERS = MAX_TEXT - MAX_WORD - 1  # as a scan takes it

OnFile = Callable[[int, int, str], None]  # files done, files in all, name of the last one


class Describer(Protocol):
    """A model that answers questions on pictures."""

    batch_size: int  # the most that it takes at once

    def describe(
        self, shown: Sequence[torch.Tensor], questions: Sequence[str], max_tokens: int
    ) -> list[tuple[str, bool]]:
        """For each of `shown` ([F, H, W, 3] uint8 RGB) and its question: the answer, and whether max_tokens cut it off."""
        ...


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What was done in a folder."""

    written: dict[str, str]  # name of a caption file to its text
    kept: int  # captions that were there and stay
    notes: tuple[Note, ...]

    def __str__(self) -> str:
        kept = f", {self.kept} kept as they are" if self.kept else ""
        failed = f", {len(self.notes)} noted" if self.notes else ""
        return f"{counted(len(self.written), 'caption')} written{kept}{failed}"


@dataclass(frozen=True, kw_only=True)
class _Job:
    name: str
    path: Path
    caption: str  # name of its caption file


def caption_folder(
    folder: Path,
    options: CaptioningOptions,
    load: Callable[[], Describer],
    *,
    on_file: OnFile | None = None,
    within: Sequence[Path] | None = None,
    check: Callable[[], object] | None = None,
) -> Captioned:
    """Write a text file beside each picture and clip of `folder` that has no caption.

    `load` gives the model, and is called only if there is something to do. A file with any text is left alone, unless
    `redo` is chosen and the text is still what a machine wrote. Each batch is written before the next is described, each file
    whole or not at all, so that a stopped captioning goes on where it was. `on_file` and `check` may raise to stop;
    `within`: as for `scan_folder`. DatasetError for a folder without media, RunError for one that cannot be written to.
    """
    folder = Path(folder).absolute()
    check_folder(folder)
    places = None if within is None else [folder, *within]
    found = find_files(folder, DatasetOptions(caption_extension=options.caption_extension), None, places)
    masks = {note.name for note in look_like_masks(found.media)}  # they are no pictures to describe
    media = {name: path for name, path in found.media.items() if name not in masks}
    if not media:
        raise DatasetError(f"{folder} holds no images or clips to write captions for: choose another folder.")
    written = MachineCaptions(folder)
    notes = [note for note in found.notes if note.action == "skipped"]
    if written.problem and options.redo:
        notes.append(Note(name=str(folder), action="note", reason=written.problem))
    jobs, kept = _jobs(media, found.sidecars, options, written)
    texts: dict[str, str] = {}
    if jobs:
        model = load()
        size = min(options.batch_size, model.batch_size)
        if size < options.batch_size:
            reason = f"batch_size {options.batch_size} has no effect: this model takes one file at a time"
            notes.append(Note(name=str(folder), action="note", reason=reason))
        with Interrupt(check) as interrupt:
            for done, batch in _batches(jobs, size):
                new = _describe(batch, options, model, interrupt, notes)
                texts |= _write(folder, new, options, written, notes)
                if on_file is not None:
                    on_file(done, len(jobs), batch[-1].name)
    return Captioned(written=texts, kept=kept, notes=tuple(notes))


def _jobs(
    media: dict[str, Path], sidecars: dict[str, Path], options: CaptioningOptions, written: MachineCaptions
) -> tuple[list[_Job], int]:
    """What has to be captioned, and the number of captions that stay."""
    ending = "." + options.caption_extension.lstrip(".")
    jobs: list[_Job] = []
    seen: set[str] = set()
    kept = 0
    for name, path in media.items():
        own = sidecars.get(name)
        caption = name.rpartition(".")[0] + (own.suffix if own else ending)
        if caption in seen:  # a picture and a clip that share the file
            continue
        seen.add(caption)
        if _is_free(own, caption, options, written):
            jobs.append(_Job(name=name, path=path, caption=caption))
        else:
            kept += 1
    return jobs, kept


def _is_free(path: Path | None, name: str, options: CaptioningOptions, written: MachineCaptions) -> bool:
    """Whether a caption may be written there: nothing is there, nothing but blanks, or what a machine wrote with `redo`."""
    if path is None:
        return True
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, BadMediaError):
        return False  # somebody's, whatever it is
    return not data.strip() or (options.redo and written.is_ours(name, data))


def _write(
    folder: Path, texts: dict[str, str], options: CaptioningOptions, written: MachineCaptions, notes: list[Note]
) -> dict[str, str]:
    """Write those in whose place a person has written nothing while the model was at work; what was written."""
    free: dict[str, str] = {}
    for name, text in texts.items():
        path = folder / name
        if _is_free(path if os.path.lexists(path) else None, name, options, written):
            free[name] = text
        else:
            notes.append(Note(name=name, action="skipped", reason="somebody wrote it meanwhile, and it is left alone"))
    if free:
        written.remember(free)
    for name, text in free.items():
        write_atomic(folder / name, functools.partial(_put, text), kept="the captions so far are kept")
    return free


def _put(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _batches(jobs: list[_Job], size: int) -> Iterator[tuple[int, list[_Job]]]:
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        yield start + len(batch), batch


def _describe(
    batch: list[_Job], options: CaptioningOptions, model: Describer, interrupt: Interrupt, notes: list[Note]
) -> dict[str, str]:
    """Captions of a batch by their files' names; a note for each file that gets none."""
    shown: list[tuple[_Job, torch.Tensor, str]] = []
    for job in batch:
        try:
            frames, is_clip = shown_frames(job.path, options.num_frames, options.picture_size, interrupt)
        except (BadMediaError, DatasetError) as error:
            notes.append(Note(name=job.name, action="skipped", reason=str(error)))
            continue
        shown.append((job, frames, question_for(options, is_clip=is_clip)))
    if not shown:
        return {}
    answers = model.describe([frames for _, frames, _ in shown], [asked for *_, asked in shown], options.max_tokens)
    captions: dict[str, str] = {}
    for (job, _, _), (answer, was_cut) in zip(shown, answers, strict=True):
        text = caption_of(answer, options, was_cut=was_cut)
        if not text:
            notes.append(
                Note(name=job.name, action="skipped", reason="the model said nothing of it: try another question")
            )
        elif len(text) > _MOST_LETTERS:
            reason = (
                f"the model's answer has {len(text)} characters, and {_MOST_LETTERS} are the most: lower max_tokens"
            )
            notes.append(Note(name=job.name, action="skipped", reason=reason))
        else:
            captions[job.caption] = text
    return captions

"""From a folder to a `Dataset`: finds media, pairs captions, probes, picks frames and buckets, holds samples out."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import DatasetError
from ..settings.dataset import DatasetOptions
from ..words import counted
from .buckets import buckets_of, held_out_indices
from .captions import assign_captions
from .choice import scale_note, shape_for, why_left_out, with_crop, with_flips
from .folder import check_folder, find_files, without_given, without_masks
from .given import GivenFiles, given_of
from .masks import mask_of
from .media import MEDIA_SUFFIXES, BadMediaError
from .metadata_files import FOUND_BY_NAME, find_metadata, read_metadata
from .points import read_points, used_part
from .probe import Probe, ProbeIndex, probe_file
from .sampling import Selection, mean_fps, select_frames
from .types import Dataset, MediaFile, Note, Sample, Treatment
from .watch import Interrupt


class NotOpenedError(DatasetError):
    """Files of a folder would have to be opened to answer."""


Progress = Callable[[int, int], None]  # files done, files in all


def scan_folder(
    folder: Path,
    options: DatasetOptions,
    *,
    index_path: Path | None = None,
    progress: Progress | None = None,
    within: Sequence[Path] | None = None,
    check: Callable[[], object] | None = None,
    known_only: bool = False,
) -> Dataset:
    """Find every image and clip under `folder` and turn it into samples; nothing is left out without a note.

    Files come in natural order (clip_2 before clip_10) of their names relative to the folder. With `index_path`, hashes
    and probes are remembered there, and unchanged files are not opened again. `progress` is called after each file and
    may raise to abort: what was probed so far is remembered. `check` may do so too, and is called several times a second
    on the caller's thread, also while a file is read. `within`: the only places that links in the folder may lead to,
    besides the folder itself; None: anywhere. `known_only`: open no file, and raise NotOpenedError where one is new or has
    changed. Raises DatasetError for a folder that gives no samples, a file that the
    options refuse, or too many held-out samples.
    """
    folder = Path(folder).absolute()
    check_folder(folder)
    within = None if within is None else [folder, *within]
    found = find_files(folder, options, index_path, within)
    found, masks = without_masks(folder, found, options, within)
    found, given = without_given(folder, found, options, within)
    if not found.media:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        left_out = next((f" ({note})" for note in found.notes if note.action == "skipped"), "")
        raise DatasetError(
            f"{folder} holds no images or clips{left_out}: put some there ({known}), or choose another folder."
        )
    names, listed = list(found.media), None
    if options.caption_source == "metadata":
        listed = read_metadata(find_metadata(folder, options.metadata_file, found.others, within), folder, names)
    unread = next((name for name in found.others if name.lower() in FOUND_BY_NAME), "")
    with_words = dataclasses.replace(options, trigger_word=options.trigger)
    try:
        captions, caption_notes = assign_captions(names, found.sidecars, with_words, listed, unread=unread)
    except DatasetError as error:  # names are relative to the folder, and a run may have several
        raise DatasetError(f"{folder}: {error}") from error
    media = {name: path for name, path in found.media.items() if name in captions}
    if known_only:
        _check_known(folder, [*media.values(), *given.paths.values(), *masks.values()], index_path)
    probes = _probe_all(folder, media, index_path, progress, Interrupt(check))
    given_probes = _probe_all(folder, given.paths, index_path, None, Interrupt(check)) if given.paths else {}
    mask_probes = _probe_all(folder, masks, index_path, None, Interrupt(check)) if masks else {}
    samples: list[list[Sample]] = []
    notes: list[Note] = [*found.notes, *caption_notes]
    for name, path in media.items():
        of_file, file_notes = _samples_of(name, path, probes[name], captions[name], options, found.points.get(name))
        if options.has_masks and of_file:
            has_alpha, mask_path = probes[name].has_alpha, masks.get(name)
            mask, mask_notes = mask_of(of_file[0].file, has_alpha, mask_path, mask_probes.get(name), options)
            of_file, file_notes = [dataclasses.replace(s, mask=mask) for s in of_file], [*file_notes, *mask_notes]
        if of_file and ((options.gives_frames and of_file[0].file.kind == "video") or options.names_pairs):
            of_file, given_notes = _with_given(of_file, given, given_probes, options)
            file_notes = [*file_notes, *given_notes]
        samples.append(of_file)
        if not of_file:  # what became of its caption is of no interest then
            notes = [note for note in notes if note.name != name or note not in caption_notes]
        notes.extend(file_notes)
    flat, held_notes = _hold_out(samples, options)
    flat, flip_notes = with_flips(flat, options)
    notes.extend([*held_notes, *flip_notes])
    if not flat:
        why = next((str(n) for n in notes if n.action in ("dropped", "skipped")), "none gives a sample")
        number = len(found.media)
        none = f"None of the {number} files in {folder} can be used; the first"
        raise DatasetError(f"{none if number > 1 else f'The only file in {folder} cannot be used'}: {why}.")
    order = {name: i for i, name in enumerate(found.media)}
    notes.sort(key=lambda note: order.get(note.name, len(order)))
    return Dataset(folder=str(folder), options=options, samples=tuple(flat), notes=tuple(notes))


def _check_known(folder: Path, paths: Sequence[Path], index_path: Path | None) -> None:
    """NotOpenedError if one of the files is not remembered as it is now."""
    index = ProbeIndex(index_path)
    unknown = sum(index.get(path) is None for path in paths)
    if unknown:
        raise NotOpenedError(f"{unknown} of {len(paths)} files in {folder} have not been opened yet.")


def _probe_all(
    folder: Path, media: dict[str, Path], index_path: Path | None, progress: Progress | None, interrupt: Interrupt
) -> dict[str, Probe]:
    """Probe of every file, by name. Threads help: hashing and demuxing wait for the disk and run outside the GIL."""
    index = ProbeIndex(index_path)
    probes: dict[str, Probe] = {}

    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="wan-probe")
    try:
        with interrupt:
            futures: dict[str, Future[Probe]] = {}
            for name, path in media.items():
                interrupt()
                known = index.get(path)
                if known is None:
                    futures[name] = pool.submit(probe_file, path, interrupt)
                else:
                    probes[name] = known
                    if progress is not None:
                        progress(len(probes), len(media))
            for name, future in futures.items():
                probes[name] = interrupt.result(future)
                index.put(media[name], probes[name])
                if progress is not None:
                    progress(len(probes), len(media))
    finally:
        # Who gives up does not wait for a decoder that takes long for one frame: its thread ends at the next.
        pool.shutdown(wait=False, cancel_futures=True)
        index.save(folder)
    return probes


def _unusable(name: str, path: Path, problem: str, options: DatasetOptions) -> tuple[list[Sample], list[Note]]:
    if options.bad_files == "refuse":
        raise DatasetError(f"{path} cannot be used: {problem}; replace or remove it, or let bad files be skipped.")
    return [], [Note(name=name, action="skipped", reason=problem)]


def _select(name: str, probe: Probe, options: DatasetOptions, points_path: Path | None) -> tuple[Selection, list[Note]]:
    """The windows in the part of a clip that is used. BadMediaError if there is no such part, or it gives no windows."""
    points = None if points_path is None else read_points(points_path)
    problem = points.problem(len(probe.times_us)) if points else ""
    if points and problem:
        raise BadMediaError(f"its in and out points cannot be used: {problem}")
    times, end, first = used_part(probe.times_us, probe.end_us, points)
    selection = select_frames(times, end, options)
    if selection.problem:
        raise BadMediaError(selection.problem)
    told = list(selection.notes)
    if points:
        part = f"frames {points.in_frame} to {points.out_frame - 1} of {len(probe.times_us)} are used, by its in and out points"
        told.insert(0, ("note", part))
    windows = tuple(tuple(index + first for index in window) for window in selection.windows)
    notes = [Note(name=name, action=action, reason=reason) for action, reason in told]
    return dataclasses.replace(selection, windows=windows), notes


def _samples_of(
    name: str,
    path: Path,
    probe: Probe,
    captions: tuple[str, ...],
    options: DatasetOptions,
    points_path: Path | None,
) -> tuple[list[Sample], list[Note]]:
    """Samples of one file. A bad or short file gives none, and a note, unless the options refuse it."""
    if probe.problem:
        return _unusable(name, path, probe.problem, options)
    file = MediaFile(
        path=str(path),
        name=name,
        sha256=probe.sha256,
        kind=probe.kind,
        width=probe.width,
        height=probe.height,
        num_frames=len(probe.times_us),
        fps=mean_fps(probe.times_us, probe.end_us),
        caption=captions[0],
        more_captions=captions[1:],
        read_as=probe.read_as,
    )
    left_out = why_left_out(file, probe.end_us / 1e6, options)
    if left_out:
        return [], [Note(name=name, action="skipped", reason=left_out)]
    windows: tuple[tuple[int, ...], ...] = ((0,),)
    notes: list[Note] = []
    if probe.kind == "video":
        try:
            selection, notes = _select(name, probe, options, points_path)
        except BadMediaError as error:
            return _unusable(name, path, str(error), options)
        windows = selection.windows
        if not windows:
            if options.short_clips == "refuse":
                raise DatasetError(
                    f"{path} is too short: {selection.notes[-1][1]}; lower num_frames, remove the clip, "
                    f"or let short clips be shortened or skipped."
                )
            return [], notes
    notes += [Note(name=name, action="note", reason=remark) for remark in probe.remarks]
    if options.crop == "motion" and probe.kind != "video":
        notes.append(Note(name=name, action="note", reason="crop motion cannot follow a picture: its middle is kept"))
    buckets, told = buckets_of(file.width, file.height, options, shape_for(file, options))
    notes += [Note(name=name, action=action, reason=reason) for action, reason in told]
    notes += [note for bucket in buckets if (note := scale_note(file, bucket))]
    shared = {
        "file": file,
        "repeats": options.repeats,
        "treatment": _treatment(options),
        "is_of_sizes": len(buckets) > 1,
    }
    samples = [
        with_crop(Sample(frame_indices=window, width=width, height=height, **shared), options)
        for window in windows
        for width, height in buckets
    ]
    return samples, notes


def _with_given(
    samples: list[Sample], given: GivenFiles, probes: dict[str, Probe], options: DatasetOptions
) -> tuple[list[Sample], list[Note]]:
    """A file's samples with what is given with them; none, and a note, if something of it is not there."""
    file = samples[0].file
    try:
        pictures, notes = given_of(file, given, probes, options)
    except BadMediaError as error:
        return _unusable(file.name, Path(file.path), str(error), options)
    found = pictures if pictures.first or pictures.last or pictures.paired else None
    return [dataclasses.replace(sample, given=found) for sample in samples], notes


def _treatment(options: DatasetOptions) -> Treatment:
    class_word = "" if options.regularization else " ".join(options.class_word.split())
    return Treatment(
        loss_weight=options.loss_weight,
        caption_dropout=options.drop_captions,
        is_regularization=options.regularization,
        trigger=" ".join(options.trigger.split()) if class_word else "",
        class_word=class_word,
    )


def _hold_out(samples: Sequence[Sequence[Sample]], options: DatasetOptions) -> tuple[list[Sample], list[Note]]:
    """All samples in order, options.held_out of them flagged."""
    flat = [sample for of_file in samples for sample in of_file]
    if not options.held_out or not flat:
        return flat, []
    if options.held_out >= len(flat):
        are = "is" if len(flat) == 1 else "are"
        raise DatasetError(
            f"held_out is {options.held_out}, but there {are} only {counted(len(flat), 'sample')}: some must be left to train "
            f"on, so use {len(flat) - 1} or fewer."
        )
    groups = [of_file for of_file in samples if of_file]
    held = held_out_indices([len(group) for group in groups], options.held_out)
    marked = [dataclasses.replace(s, held_out=True, repeats=1) if i in held else s for i, s in enumerate(flat)]
    notes, start = [], 0
    for group in groups:
        count = sum(start + i in held for i in range(len(group)))
        if 0 < count < len(group):
            what = "sample" if group[0].is_of_sizes else "window"
            last = f"its last {what} is" if count == 1 else f"its last {count} {what}s are"
            reason = f"{last} held out, of {len(group)}; the others are trained on"
            notes.append(Note(name=group[0].file.name, action="note", reason=reason))
        start += len(group)
    return marked, notes

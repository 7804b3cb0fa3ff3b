"""From a folder to a `Dataset`: finds media, pairs captions, probes, picks frames and buckets, holds samples out."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from ..settings.dataset import DatasetOptions
from .buckets import buckets_of, held_out_indices
from .captions import assign_captions, extension
from .choice import scale_note, shape_for, why_left_out, with_crop, with_flips
from .given import GivenFiles, given_of, separate_given
from .links import leads_within
from .masks import look_like_masks, mask_of, separate_masks
from .media import MEDIA_SUFFIXES, BadMediaError
from .points import POINTS_SUFFIX, read_points, used_part
from .probe import Probe, ProbeIndex, probe_file
from .sampling import Selection, mean_fps, select_frames
from .types import Dataset, MediaFile, Note, Sample, Treatment
from .watch import Interrupt

Progress = Callable[[int, int], None]  # files done, files in all

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})  # besides everything that starts with a dot


@dataclass(frozen=True, kw_only=True)
class _Found:
    media: dict[str, Path]  # by name relative to the folder, in natural order
    sidecars: dict[str, Path]  # caption file of a media name
    points: dict[str, Path]  # in and out points of a media name
    notes: list[Note]


def scan_folder(
    folder: Path,
    options: DatasetOptions,
    *,
    index_path: Path | None = None,
    progress: Progress | None = None,
    within: Sequence[Path] | None = None,
    check: Callable[[], object] | None = None,
) -> Dataset:
    """Find every image and clip under `folder` and turn it into samples; nothing is left out without a note.

    Files come in natural order (clip_2 before clip_10) of their names relative to the folder. With `index_path`, hashes
    and probes are remembered there, and unchanged files are not opened again. `progress` is called after each file and
    may raise to abort: what was probed so far is remembered. `check` may do so too, and is called several times a second
    on the caller's thread, also while a file is read. `within`: the only places that links in the folder may lead to,
    besides the folder itself; None: anywhere. Raises DatasetError for a folder that gives no samples, a file that the
    options refuse, or too many held-out samples.
    """
    folder = Path(folder).absolute()
    _check_folder(folder)
    within = None if within is None else [folder, *within]
    found = _find(folder, extension(options), index_path, within)
    found, masks = _without_masks(folder, found, options, within)
    media, given = separate_given(folder, found.media, options, within)
    found = dataclasses.replace(found, media=media, notes=_notes_on(found, media))
    if not found.media:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        left_out = next((f" ({note})" for note in found.notes if note.action == "skipped"), "")
        raise DatasetError(
            f"{folder} holds no images or clips{left_out}: put some there ({known}), or choose another folder."
        )
    with_words = dataclasses.replace(options, trigger_word=options.trigger)
    captions, caption_notes = assign_captions(list(found.media), found.sidecars, with_words)
    media = {name: path for name, path in found.media.items() if name in captions}
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
        if options.gives_frames and of_file and of_file[0].file.kind == "video":
            of_file, given_notes = _with_given(of_file, given, given_probes, options)
            file_notes = [*file_notes, *given_notes]
        samples.append(of_file)
        notes.extend(file_notes)
    flat, held_notes = _hold_out(samples, options)
    flat, flip_notes = with_flips(flat, options)
    notes.extend([*held_notes, *flip_notes])
    if not flat:
        why = next((str(n) for n in notes if n.action in ("dropped", "skipped")), "none gives a sample")
        raise DatasetError(f"None of the {len(found.media)} files in {folder} can be used; the first: {why}.")
    order = {name: i for i, name in enumerate(found.media)}
    notes.sort(key=lambda note: order.get(note.name, len(order)))
    return Dataset(folder=str(folder), options=options, samples=tuple(flat), notes=tuple(notes))


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key in which numbers count as numbers and case does not; the name itself breaks ties."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _check_folder(folder: Path) -> None:
    if not _is_text(str(folder)):
        raise DatasetError(f"The name of the dataset folder {str(folder)!a} is not UTF-8: rename it.")
    try:
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise DatasetError(f"The dataset folder {folder} cannot be looked up ({error}): check the path.") from error
    if not exists:
        raise DatasetError(f"The dataset folder {folder} does not exist: check the path.")
    if not is_folder:
        raise DatasetError(f"{folder} is a file, not a folder: give the folder that holds the images and clips.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DatasetError(f"The dataset folder {folder} cannot be read: change its permissions.")


def _find(folder: Path, caption_suffix: str, index_path: Path | None, within: Sequence[Path] | None) -> _Found:
    files: dict[str, Path] = {}
    notes: list[Note] = []
    _walk(folder, files, notes)
    if within is not None:
        _drop_links(files, within, notes)
    own = Path(index_path).absolute() if index_path else None
    names = sorted((name for name, path in files.items() if path != own), key=natural_key)
    points = {name: files[name + POINTS_SUFFIX] for name in names if name + POINTS_SUFFIX in files}
    names = [name for name in names if name.removesuffix(POINTS_SUFFIX) not in points or name in points]
    media = {name: files[name] for name in names if _suffix(name) in MEDIA_SUFFIXES - {caption_suffix}}
    texts = {_stem(name): name for name in names if _suffix(name) == caption_suffix}
    users: dict[str, list[str]] = {}
    for name in media:
        users.setdefault(_stem(name), []).append(name)
    for name in names:
        if name in media:
            sharing = users[_stem(name)]
            if name != sharing[0] and _stem(name) in texts:
                reason = f"shares the caption file {texts[_stem(name)]} with {sharing[0]}"
                notes.append(Note(name=name, action="note", reason=reason))
        elif _suffix(name) != caption_suffix:
            notes.append(Note(name=name, action="note", reason="ignored: not an image or clip of a known kind"))
        elif _stem(name) not in users:
            notes.append(Note(name=name, action="note", reason="ignored: a caption file without an image or clip"))
    sidecars = {name: files[texts[_stem(name)]] for name in media if _stem(name) in texts}
    return _Found(media=media, sidecars=sidecars, points=points, notes=notes)


def _without_masks(
    folder: Path, found: _Found, options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[_Found, dict[str, Path]]:
    """What was found without the files that are masks of others, and those by the others' names."""
    if not (options.mask_folder or options.mask_suffix):
        return dataclasses.replace(found, notes=[*found.notes, *look_like_masks(found.media)]), {}
    media, masks = separate_masks(folder, found.media, options, within)
    return dataclasses.replace(found, media=media, notes=_notes_on(found, media)), masks


def _notes_on(found: _Found, media: dict[str, Path]) -> list[Note]:
    """The notes, but for those on files that turned out not to be trained on."""
    return [note for note in found.notes if note.name not in found.media or note.name in media]


def _with_given(
    samples: list[Sample], given: GivenFiles, probes: dict[str, Probe], options: DatasetOptions
) -> tuple[list[Sample], list[Note]]:
    """A clip's samples with the pictures that are given with them; none, and a note, if one of those is not there."""
    file = samples[0].file
    try:
        pictures, notes = given_of(file, given, probes, options)
    except BadMediaError as error:
        return _unusable(file.name, Path(file.path), str(error), options)
    found = pictures if pictures.first or pictures.last else None
    return [dataclasses.replace(sample, given=found) for sample in samples], notes


def _walk(root: Path, files: dict[str, Path], notes: list[Note]) -> None:
    """Collect files below `root`, following links to folders, but into no folder twice."""
    seen, waiting = {root.resolve()}, [root]
    while waiting:
        folder = waiting.pop()
        try:
            children = sorted(folder.iterdir())
        except OSError as error:
            reason = f"the folder cannot be read ({error.strerror or error})"
            notes.append(Note(name=folder.relative_to(root).as_posix(), action="skipped", reason=reason))
            continue
        for child in children:
            if child.name.startswith(".") or child.name.lower() in _IGNORED:
                continue
            name = child.relative_to(root).as_posix()
            if not _is_text(name):
                reason = "its name is not UTF-8, so it cannot be told or stored: rename it"
                notes.append(
                    Note(name=name.encode("utf-8", "backslashreplace").decode(), action="skipped", reason=reason)
                )
                continue
            target = _folder_behind(child)
            if target is None:
                files[name] = child
            elif target not in seen:
                seen.add(target)
                waiting.append(child)


def _folder_behind(path: Path) -> Path | None:
    """The folder that `path` is or leads to; None for anything else, also for what cannot be told."""
    try:
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return None


def _is_text(name: str) -> bool:
    """Whether it can be printed, logged and stored as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _drop_links(files: dict[str, Path], within: Sequence[Path], notes: list[Note]) -> None:
    """Leave out files that links take from elsewhere: a dataset of somebody's could read any file of the user's so."""
    for name in [name for name, path in files.items() if not leads_within(path, within)]:
        reason = (
            "a link that leads outside the dataset folders; put the file itself here, or name the place it lies in as"
        )
        reason += " a dataset folder (datasets: in extra_model_paths.yaml, or WANTRAIN_DATASET_ROOTS)"
        notes.append(Note(name=name, action="skipped", reason=reason))
        del files[name]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _probe_all(
    folder: Path, media: dict[str, Path], index_path: Path | None, progress: Progress | None, interrupt: Interrupt
) -> dict[str, Probe]:
    """Probe of every file, by name. Threads help: hashing and demuxing wait for the disk and run outside the GIL."""
    index = ProbeIndex(index_path)
    probes: dict[str, Probe] = {}

    def probe(path: Path) -> tuple[Probe, bool]:
        known = index.get(path)
        return (known, True) if known else (probe_file(path, interrupt), False)

    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="wan-probe")
    try:
        with interrupt:
            futures = {name: pool.submit(probe, path) for name, path in media.items()}
            for name, future in futures.items():
                result, was_known = interrupt.result(future)
                probes[name] = result
                if not was_known:
                    index.put(media[name], result)
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
    name: str, path: Path, probe: Probe, caption: str, options: DatasetOptions, points_path: Path | None
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
        caption=caption,
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


def _treatment(options: DatasetOptions) -> Treatment:
    return Treatment(
        loss_weight=options.loss_weight,
        caption_dropout=options.drop_captions,
        is_regularization=options.regularization,
    )


def _hold_out(samples: Sequence[Sequence[Sample]], options: DatasetOptions) -> tuple[list[Sample], list[Note]]:
    """All samples in order, options.held_out of them flagged."""
    flat = [sample for of_file in samples for sample in of_file]
    if not options.held_out or not flat:
        return flat, []
    if options.held_out >= len(flat):
        raise DatasetError(
            f"held_out is {options.held_out}, but there are only {len(flat)} samples: "
            f"some must be left to train on, so use {len(flat) - 1} or fewer."
        )
    groups = [of_file for of_file in samples if of_file]
    held = held_out_indices([len(group) for group in groups], options.held_out)
    marked = [dataclasses.replace(s, held_out=True, repeats=1) if i in held else s for i, s in enumerate(flat)]
    notes, start = [], 0
    for group in groups:
        count = sum(start + i in held for i in range(len(group)))
        if 0 < count < len(group):
            what = "samples" if group[0].is_of_sizes else "windows"
            reason = f"its last {count} of {len(group)} {what} are held out, the others are trained on"
            notes.append(Note(name=group[0].file.name, action="note", reason=reason))
        start += len(group)
    return marked, notes


def find_media(
    folder: Path, options: DatasetOptions, within: Sequence[Path] | None = None
) -> tuple[dict[str, Path], dict[str, Path], list[Note]]:
    """(media files by name, caption file of a media name, notes) of a folder, without opening any. Errors: as `scan_folder`."""
    _check_folder(folder)
    found = _find(folder, extension(options), None, None if within is None else [folder, *within])
    return found.media, found.sidecars, found.notes

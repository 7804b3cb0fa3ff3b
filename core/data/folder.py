"""Which files a dataset folder holds, and what each is: media, captions, in and out points, masks, others."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from ..names import same_name
from ..settings.dataset import DatasetOptions
from .captions import extension
from .given import GivenFiles, separate_given
from .links import leads_within
from .masks import look_like_masks, separate_masks
from .media import MEDIA_SUFFIXES
from .metadata_files import FOUND_BY_NAME
from .points import POINTS_SUFFIX
from .types import Note

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})  # besides everything that starts with a dot


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    media: dict[str, Path]  # by name relative to the folder, in natural order
    sidecars: dict[str, Path]  # caption file of a media name
    points: dict[str, Path]  # in and out points of a media name
    others: list[str]  # names of all other files
    notes: list[Note]


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key in which numbers count as numbers and case does not; the name itself breaks ties."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def check_folder(folder: Path) -> None:
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


def find_files(
    folder: Path, options: DatasetOptions, index_path: Path | None, within: Sequence[Path] | None
) -> FolderFiles:
    files: dict[str, Path] = {}
    notes: list[Note] = []
    linked = _walk(folder, files, notes)
    if within is not None:
        _drop_links(files, linked, within, notes)
    own = Path(index_path).absolute() if index_path else None
    caption_suffix = extension(options)
    if caption_suffix in MEDIA_SUFFIXES and options.caption_source == "sidecar":
        raise DatasetError(
            f"caption_extension is {options.caption_extension}, which is the ending of images or clips: give that of the "
            "caption files, such as .txt."
        )
    names = sorted((name for name, path in files.items() if path != own), key=natural_key)
    points = {name: files[name + POINTS_SUFFIX] for name in names if name + POINTS_SUFFIX in files}
    names = [name for name in names if name.removesuffix(POINTS_SUFFIX) not in points or name in points]
    media = {name: files[name] for name in names if _suffix(name) in MEDIA_SUFFIXES}
    texts = {_stem(name): name for name in names if _suffix(name) == caption_suffix}
    if options.caption_source != "sidecar":
        texts = {}
    texts |= spelled_otherwise({_stem(name) for name in media}, texts)
    users: dict[str, list[str]] = {}
    for name in media:
        users.setdefault(_stem(name), []).append(name)
    others = [name for name in names if name not in media]
    captions = [name for name in others if _suffix(name) == caption_suffix]
    if options.caption_source == "metadata":
        captions = [name for name in captions if not _is_metadata(name, options)]
    notes += _caption_notes(captions, users, texts, options)
    read = set(captions)
    notes += [note for name in others if name not in read and (note := _other_note(name, options))]
    sidecars = {name: files[texts[_stem(name)]] for name in media if _stem(name) in texts}
    return FolderFiles(media=media, sidecars=sidecars, points=points, others=others, notes=notes)


def _caption_notes(
    captions: Sequence[str], users: Mapping[str, Sequence[str]], texts: Mapping[str, str], options: DatasetOptions
) -> list[Note]:
    """On caption files that two share, that nobody has, or that are not read. `users`: media by their stems."""
    if options.caption_source != "sidecar":
        more = f" (and {len(captions) - 1} more)" if len(captions) > 1 else ""
        reason = f"ignored{more}: caption files are not read, as caption_source is {options.caption_source}"
        return [Note(name=name, action="note", reason=reason) for name in captions[:1]]
    notes = []
    for stem, (first, *others) in users.items():
        if stem in texts:
            reason = f"shares the caption file {texts[stem]} with {first}"
            notes += [Note(name=name, action="note", reason=reason) for name in others]
    reason, used = "ignored: a caption file without an image or clip", {texts.get(stem) for stem in users}
    return notes + [Note(name=name, action="note", reason=reason) for name in captions if name not in used]


def spelled_otherwise(stems: set[str], texts: Mapping[str, str]) -> dict[str, str]:
    """Caption files by the stems of media that have none of their very name, and differ in case or in form (NFC, NFD) alone.

    Windows and the Mac take such names for the same, and a Mac writes letters with marks in another form than others do.
    """
    without = [stem for stem in stems if stem not in texts]
    left: dict[str, list[str]] = {}
    for stem, name in texts.items() if without else ():
        if stem not in stems:
            left.setdefault(same_name(stem), []).append(name)
    found = {stem: left.get(same_name(stem), []) for stem in without}
    return {stem: names[0] for stem, names in found.items() if len(names) == 1}


def _is_metadata(name: str, options: DatasetOptions) -> bool:
    return (
        name == os.path.normpath(options.metadata_file).replace("\\", "/")
        if options.metadata_file
        else name.lower() in FOUND_BY_NAME
    )


def _other_note(name: str, options: DatasetOptions) -> Note | None:
    """What there is to say of a file that is neither media nor a caption file; nothing of the one that captions are from."""
    reason = "ignored: not an image or clip of a known kind"
    if options.caption_source == "metadata":
        if _is_metadata(name, options):
            return None
    elif name.lower() in FOUND_BY_NAME:
        reason = "ignored: to take captions from it, set caption_source to metadata"
    return Note(name=name, action="note", reason=reason)


def without_masks(
    folder: Path, found: FolderFiles, options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[FolderFiles, dict[str, Path]]:
    """What was found without the files that are masks of others, and those by the others' names."""
    if not (options.mask_folder or options.mask_suffix):
        return dataclasses.replace(found, notes=[*found.notes, *look_like_masks(found.media)]), {}
    media, masks, told = separate_masks(folder, found.media, options, within)
    notes = [note for note in found.notes if note.name not in found.media or note.name in media] + told
    return dataclasses.replace(found, media=media, notes=notes), masks


def without_given(
    folder: Path, found: FolderFiles, options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[FolderFiles, GivenFiles]:
    """What was found without the pictures that are given with clips, and those."""
    media, given, told = separate_given(folder, found.media, options, within)
    notes = [note for note in found.notes if note.name not in found.media or note.name in media] + told
    return dataclasses.replace(found, media=media, notes=notes), given


def _walk(root: Path, files: dict[str, Path], notes: list[Note]) -> list[str]:
    """Collect files below `root`, following links to folders, but into no folder twice; names that links have led to."""
    real_root = root.resolve()
    seen, waiting = {real_root}, [(root, real_root)]
    linked: list[str] = []
    while waiting:
        folder, real = waiting.pop()
        is_linked = not real.is_relative_to(real_root)
        try:
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the folder cannot be read ({error.strerror or error})"
            notes.append(Note(name=folder.relative_to(root).as_posix(), action="skipped", reason=reason))
            continue
        place = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        for child in children:
            if child.name.startswith(".") or child.name.lower() in _IGNORED:
                continue
            name = f"{place}{child.name}"
            if not _is_text(name):
                reason = "its name is not UTF-8, so it cannot be told or stored: rename it"
                told = os.fsencode(name).decode("utf-8", "backslashreplace")
                notes.append(Note(name=told, action="skipped", reason=reason))
                continue
            target = _folder_behind(child, real)
            if target is None:
                files[name] = folder / child.name
                if is_linked or _may_be_link(child):
                    linked.append(name)
            elif target not in seen:
                seen.add(target)
                waiting.append((folder / child.name, target))
    return linked


def _may_be_link(entry: "os.DirEntry[str]") -> bool:
    """Whether it leads elsewhere. Windows has other kinds of links, which are not told apart here."""
    return os.name == "nt" or entry.is_symlink()


def _folder_behind(entry: "os.DirEntry[str]", real: Path) -> Path | None:
    """The folder that `entry`, of the folder `real`, is or leads to; None for anything else, also for what cannot be told."""
    try:
        if not entry.is_dir():
            return None
        return Path(entry.path).resolve() if _may_be_link(entry) else real / entry.name
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return None


def _is_text(name: str) -> bool:
    """Whether it can be printed, logged and stored as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _drop_links(files: dict[str, Path], linked: Sequence[str], within: Sequence[Path], notes: list[Note]) -> None:
    """Leave out files that links take from elsewhere: a dataset of somebody's could read any file of the user's so."""
    for name in [name for name in linked if not leads_within(files[name], within)]:
        reason = (
            "a link that leads outside the dataset folders; put the file itself here, or name the place it lies in as"
        )
        reason += " a dataset folder (datasets: in extra_model_paths.yaml, or WANTRAIN_DATASET_ROOTS)"
        notes.append(Note(name=name, action="skipped", reason=reason))
        del files[name]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    stem, _, ending = name.rpartition("/")[2].rpartition(".")
    return f".{ending.lower()}" if stem and ending else ""

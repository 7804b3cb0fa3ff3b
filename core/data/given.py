"""What is given beside a file: pictures in place of a clip's first and last frame, control clips, reference pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import DatasetError
from ..names import in_short, same_name
from ..paths import shown
from ..safe_json import parse_json
from ..settings.dataset import DatasetOptions
from ..words import counted
from .links import leads_within
from .media import PICTURE_SUFFIXES, BadMediaError, check_plain_file
from .partners import Partners, ownerless, without_ending
from .probe import Probe
from .types import Given, MediaFile, Note

_FRAMES = {"first_frame": "first_frames", "last_frame": "last_frames"}  # in a line of frames_file -> option
_PAIRED = {"control": "control_clips", "reference": "reference_pictures"}
_PLACES = _FRAMES | _PAIRED
_MOST_BYTES = 64 * 2**20
_OTHER_ASPECT = 0.02  # by which a picture's aspect may differ from its clip's without a word


@dataclass(frozen=True, kw_only=True)
class GivenFiles:
    """Files that are given, by the name of the file that they belong to."""

    first_frame: Mapping[str, Path] = field(default_factory=dict[str, Path])
    last_frame: Mapping[str, Path] = field(default_factory=dict[str, Path])
    control: Mapping[str, Path] = field(default_factory=dict[str, Path])
    reference: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @property
    def paths(self) -> dict[str, Path]:
        """All of them, each by a name of its own."""
        return {str(path): path for place in _PLACES for path in getattr(self, place).values()}


def separate_given(
    folder: Path, media: Mapping[str, Path], options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[dict[str, Path], GivenFiles, list[Note]]:
    """The files that are trained on, those that are given with them, and what is to be told; no file is both.

    A file in the folder of such an option has the name of the one that it belongs to, whatever the ending, in the same
    folder below it or directly in it. A line of frames_file names a file and what is given with it. DatasetError for what is
    not there.
    """
    kept, notes = dict(media), list[Note]()
    found: dict[str, dict[str, Path]] = {place: {} for place in _PLACES}
    pictures = {name: path for name, path in media.items() if path.suffix.lower() in PICTURE_SUFFIXES}
    for place, option in _PLACES.items():
        candidates = media if place == "control" else pictures
        below = getattr(options, option).replace("\\", "/").strip("/")
        if not below:
            continue
        below = _as_spelled(below, candidates)
        inside = {name: path for name, path in candidates.items() if name.startswith(f"{below}/")}
        if not inside:
            what = "pictures or clips" if place == "control" else "pictures"
            raise DatasetError(
                f"{option} is '{shown(below)}', but no such folder with {what} is within {folder}: check its name."
            )
        kept = {name: path for name, path in kept.items() if name not in inside}
        calls = {without_ending(name[len(below) + 1 :]): name for name in inside}
        partners = Partners({call: inside[name] for call, name in calls.items()}, kept, flat=True)
        found[place] = {name: path for name in kept if (path := partners.of(name))}
        owner = next((name for name in kept if name not in found[place]), "clip.mp4")
        example = f"{without_ending(owner)}{'.mp4' if place == 'control' else '.png'} for {owner}"
        notes += ownerless([calls[call] for call in partners.left], f"a file of {option}", example)
    if options.frames_file:
        listed = _read_list(folder, options.frames_file, media, within)
        for place, of_clip in listed.items():
            found[place] |= of_clip
        used = {path for of_clip in listed.values() for path in of_clip.values()}
        kept = {name: path for name, path in kept.items() if path not in used}
    return kept, GivenFiles(**found), notes


def _as_spelled(below: str, media: Mapping[str, Path]) -> str:
    """A folder as its disk has it, if it alone differs from what was written in case or form (NFC, NFD) at most."""
    depth = below.count("/") + 1
    folders = {"/".join(name.split("/")[:depth]) for name in media if name.count("/") >= depth}
    alike = [folder for folder in folders if same_name(folder) == same_name(below)]
    return alike[0] if below not in folders and len(alike) == 1 else below


def given_of(
    file: MediaFile, files: GivenFiles, probes: Mapping[str, Probe], options: DatasetOptions
) -> tuple[Given, list[Note]]:
    """What one file is given, and what there is to say of it. BadMediaError if something that it should have cannot be used.

    Only a clip has a first and a last frame.
    """
    found: dict[str, MediaFile] = {}
    notes: list[Note] = []
    for place, option in (_PLACES if file.kind == "video" else _PAIRED).items():
        path = getattr(files, place).get(file.name)
        if path is None:
            if getattr(options, option):
                what = "file" if place == "control" else "picture"
                ending = ".mp4" if place == "control" else ".png"
                raise BadMediaError(
                    f"no {what} of its name is in {option} ({shown(getattr(options, option))}): of clip.mp4 that is "
                    f"clip{ending}"
                )
            continue
        what = f"its {place.replace('_', ' ')} {path.name}"
        found[place] = _checked(what, file, path, probes[str(path)], moves=place == "control")
        if place != "control" and _has_other_aspect(file, probes[str(path)]):
            probe = probes[str(path)]
            reason = (
                f"{what} is {probe.width}x{probe.height}, another aspect ratio than the "
                f"{'clip' if file.kind == 'video' else 'picture'}'s {file.width}x{file.height}: it is scaled and cut to fit"
            )
            notes.append(Note(name=file.name, action="cropped", reason=reason))
    first, last = found.pop("first_frame", None), found.pop("last_frame", None)
    return Given(first=first, last=last, **found), notes


def _checked(what: str, file: MediaFile, path: Path, probe: Probe, *, moves: bool) -> MediaFile:
    """The file as one that is given. BadMediaError if it can't be: a control (`moves`) goes with its clip frame by frame."""
    if probe.problem:
        raise BadMediaError(f"{what} cannot be used: {probe.problem}")
    num_frames = 1 if probe.kind == "image" else len(probe.times_us)
    if num_frames > 1 and not moves:
        raise BadMediaError(f"{what} moves: give a single picture")
    if num_frames not in (1, file.num_frames):
        raise BadMediaError(
            f"{what} has {counted(num_frames, 'frame')}, and the clip has {file.num_frames}: give as many"
        )
    if moves and _has_other_aspect(file, probe):
        size = f"{probe.width}x{probe.height}"
        raise BadMediaError(f"{what} is {size}, another aspect ratio than {file.width}x{file.height}: make it fit")
    return MediaFile(
        path=str(path),
        name=path.name,
        sha256=probe.sha256,
        kind=probe.kind,
        width=probe.width,
        height=probe.height,
        num_frames=num_frames,
        fps=0.0,
        caption="",
        read_as=probe.read_as,
    )


def _has_other_aspect(file: MediaFile, probe: Probe) -> bool:
    return abs(probe.width * file.height / (probe.height * file.width) - 1) > _OTHER_ASPECT


def _read_list(
    folder: Path, name: str, media: Mapping[str, Path], within: Sequence[Path] | None
) -> dict[str, dict[str, Path]]:
    """The pictures that the lines of a file name: place to name of a clip to file."""
    path = folder / name
    if not leads_within(path, [folder, *(within or ())]):
        raise DatasetError(f"frames_file is '{shown(name)}', which lies outside {folder}: put it there.")
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except (OSError, BadMediaError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(f"frames_file {path} cannot be read ({why}): check its name.") from error
    found: dict[str, dict[str, Path]] = {place: {} for place in _PLACES}
    names = _Names(media)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"line {number} of {path}"
            clip, pictures = _entry(line, where, names)
            for place, picture in pictures.items():
                found[place][clip] = media[names.known(picture, where)]
    return found


class _Names:
    """The names of a dataset's files."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_spelling: dict[str, list[str]] = {}
        for name in self._names:
            self._by_spelling.setdefault(same_name(name), []).append(name)

    def known(self, name: str, where: str) -> str:
        """The one that is meant: the very name, or the only one that differs in case or form (NFC, NFD) alone."""
        plain = name.replace("\\", "/").removeprefix("./")
        found = [plain] if plain in self._names else self._by_spelling.get(same_name(plain), [])
        if len(found) > 1:
            both = " and ".join(f"'{in_short(each)}'" for each in sorted(found)[:2])
            raise DatasetError(f"{where} names '{in_short(name)}', which may be {both}: write it as the file has it.")
        if not found:
            raise DatasetError(f"{where} names '{in_short(name)}', which is no file of the dataset: check its name.")
        return found[0]


def _entry(line: bytes, where: str, names: _Names) -> tuple[str, dict[str, str]]:
    """(name of the clip, its pictures' names by place) of one line."""
    try:
        entry: Any = parse_json(line)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON ({error}): write one object a line.") from error
    fields = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    if not isinstance(fields.get("file_name"), str) or not all(isinstance(value, str) for value in fields.values()):
        raise DatasetError(
            f'{where} is {in_short(json.dumps(entry))}: write {{"file_name": "clip.mp4", "first_frame": "start.png"}}, or '
            f"another of {_words(_PLACES)}."
        )
    pictures = {name: value for name, value in fields.items() if name != "file_name"}
    unknown = [name for name in pictures if name not in _PLACES]
    if unknown or not pictures:
        what = f"has '{in_short(unknown[0])}', which is not used" if unknown else "names no picture"
        raise DatasetError(f"{where} {what}: beside file_name it may have {_words(_PLACES)}.")
    return names.known(fields["file_name"], where), pictures


def _words(names: Iterable[str]) -> str:
    return " and ".join(names)

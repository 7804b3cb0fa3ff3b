"""Pictures that an image-to-video model is given in place of a clip's own first and last frame: which clip has which."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import DatasetError
from ..names import in_short
from ..paths import shown
from ..safe_json import parse_json
from ..settings.dataset import DatasetOptions
from .links import leads_within
from .media import PICTURE_SUFFIXES, BadMediaError, check_plain_file
from .probe import Probe
from .types import Given, MediaFile, Note

_PLACES = {"first_frame": "first_frames", "last_frame": "last_frames"}  # in a line of frames_file -> option
_MOST_BYTES = 64 * 2**20
_OTHER_ASPECT = 0.02  # by which a picture's aspect may differ from its clip's without a word


@dataclass(frozen=True, kw_only=True)
class GivenFiles:
    """Files of the given pictures, by the name of their clip."""

    first_frame: Mapping[str, Path] = field(default_factory=dict[str, Path])
    last_frame: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @property
    def paths(self) -> dict[str, Path]:
        """All of them, each by a name of its own."""
        return {str(path): path for found in (self.first_frame, self.last_frame) for path in found.values()}


def separate_given(
    folder: Path, media: Mapping[str, Path], options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[dict[str, Path], GivenFiles]:
    """The files that are trained on, and those that are given with them; no file is both.

    A picture of first_frames or last_frames has the name of its clip, whatever the ending, in the same folder below it or
    directly in it. A line of frames_file names a clip and its pictures. DatasetError for what is not there.
    """
    kept = dict(media)
    found: dict[str, dict[str, Path]] = {place: {} for place in _PLACES}
    pictures = {name: path for name, path in media.items() if path.suffix.lower() in PICTURE_SUFFIXES}
    for place, option in _PLACES.items():
        below = getattr(options, option).replace("\\", "/").strip("/")
        if not below:
            continue
        inside = {name: path for name, path in pictures.items() if name.startswith(f"{below}/")}
        if not inside:
            raise DatasetError(
                f"{option} is '{shown(below)}', but no such folder with pictures is within {folder}: check its name."
            )
        kept = {name: path for name, path in kept.items() if name not in inside}
        by_stem = {name.removeprefix(f"{below}/").rpartition(".")[0]: path for name, path in inside.items()}
        for name in kept:
            stem = name.rpartition(".")[0]
            picture = by_stem.get(stem) or by_stem.get(stem.rpartition("/")[2])
            if picture:
                found[place][name] = picture
    if options.frames_file:
        listed = _read_list(folder, options.frames_file, media, within)
        for place, of_clip in listed.items():
            found[place] |= of_clip
        used = {path for of_clip in listed.values() for path in of_clip.values()}
        kept = {name: path for name, path in kept.items() if path not in used}
    return kept, GivenFiles(**found)


def given_of(
    file: MediaFile, files: GivenFiles, probes: Mapping[str, Probe], options: DatasetOptions
) -> tuple[Given, list[Note]]:
    """What one clip is given, and what there is to say of it. BadMediaError if a picture that it should have cannot be used."""
    pictures: dict[str, MediaFile] = {}
    notes: list[Note] = []
    for place, option in _PLACES.items():
        path = getattr(files, place).get(file.name)
        if path is None:
            if getattr(options, option):
                raise BadMediaError(f"no picture of its name is in {option} ({shown(getattr(options, option))})")
            continue
        probe = probes[str(path)]
        if probe.problem:
            raise BadMediaError(f"its {place.replace('_', ' ')} {path.name} cannot be used: {probe.problem}")
        if probe.kind != "image":
            raise BadMediaError(f"its {place.replace('_', ' ')} {path.name} moves: give a single picture")
        if abs(probe.width * file.height / (probe.height * file.width) - 1) > _OTHER_ASPECT:
            reason = (
                f"its {place.replace('_', ' ')} {path.name} is {probe.width}x{probe.height}, another aspect ratio than the "
                f"clip's {file.width}x{file.height}: it is scaled and cut to fit"
            )
            notes.append(Note(name=file.name, action="cropped", reason=reason))
        pictures[place] = _picture(path, probe)
    return Given(first=pictures.get("first_frame"), last=pictures.get("last_frame")), notes


def _picture(path: Path, probe: Probe) -> MediaFile:
    return MediaFile(
        path=str(path),
        name=path.name,
        sha256=probe.sha256,
        kind="image",
        width=probe.width,
        height=probe.height,
        num_frames=1,
        fps=0.0,
        caption="",
        read_as=probe.read_as,
    )


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
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"line {number} of {path}"
            clip, pictures = _entry(line, where, media)
            for place, picture in pictures.items():
                found[place][clip] = media[_known(picture, media, where)]
    return found


def _entry(line: bytes, where: str, media: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """(name of the clip, its pictures' names by place) of one line."""
    try:
        entry: Any = parse_json(line)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON ({error}): write one object a line.") from error
    fields = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    if not isinstance(fields.get("file_name"), str) or not all(isinstance(value, str) for value in fields.values()):
        raise DatasetError(
            f'{where} is {in_short(json.dumps(entry))}: write {{"file_name": "clip.mp4", "first_frame": "start.png"}}, with '
            "last_frame where there is one."
        )
    pictures = {name: value for name, value in fields.items() if name != "file_name"}
    unknown = [name for name in pictures if name not in _PLACES]
    if unknown or not pictures:
        what = f"has '{in_short(unknown[0])}', which is not used" if unknown else "names no picture"
        raise DatasetError(f"{where} {what}: beside file_name it may have {_words(_PLACES)}.")
    return _known(fields["file_name"], media, where), pictures


def _known(name: str, media: Mapping[str, Path], where: str) -> str:
    plain = name.replace("\\", "/").removeprefix("./")
    if plain not in media:
        raise DatasetError(f"{where} names '{in_short(name)}', which is no file of the dataset: check its name.")
    return plain


def _words(names: Iterable[str]) -> str:
    return " and ".join(names)

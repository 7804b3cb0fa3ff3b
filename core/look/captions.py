"""Where a file's caption stands, and writing another one there."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.captions import extension
from ..data.folder import spelled_otherwise
from ..data.links import leads_within
from ..data.media import MEDIA_SUFFIXES, BadMediaError
from ..data.text_files import read_text_file
from ..disk import write_atomic
from ..errors import DatasetError
from ..limits import MAX_TEXT, MAX_WORD
from ..settings.dataset import DatasetOptions

EDITED = (".txt", ".caption")  # what is one caption and nothing else
MAX_LETTERS = MAX_TEXT - MAX_WORD - 1  # as a caption that is read may have


@dataclass(frozen=True, kw_only=True)
class CaptionOnDisk:
    """The caption of one file as it stands on disk."""

    path: Path
    text: str = ""  # as written; "" where there is no file
    state: str = ""  # digest of the bytes, by which a change by somebody else is noticed; "" where there is no file
    locked: str = ""  # why it cannot be edited here, as a sentence; "" if it can


class CaptionFiles:
    """The caption files beside the media of one dataset; each folder is listed once."""

    def __init__(self, options: DatasetOptions, within: Sequence[Path] | None = None) -> None:
        """`within`: the only places that links may lead to; None: anywhere."""
        self._suffix, self._within, self._source = extension(options), within, options.caption_source
        self._folders: dict[Path, dict[str, Path]] = {}

    def of(self, media: Path) -> CaptionOnDisk:
        """What stands in the caption file of a picture or clip."""
        path = self._listed(media.parent).get(media.stem) or media.with_suffix(self._suffix)
        locked = self._locked(path)
        if self._source != "sidecar":
            return CaptionOnDisk(path=path, locked=locked)
        if self._within is not None and not leads_within(path, self._within):
            return CaptionOnDisk(path=path, locked=f"{path.name} is a link that leads outside the dataset folders.")
        try:
            data = path.read_bytes() if path.is_file() else None
            text = "" if data is None else _text(path, data)
        except (OSError, BadMediaError) as error:
            return CaptionOnDisk(path=path, locked=f"{path.name} cannot be read ({error}).")
        return CaptionOnDisk(path=path, text=text, state="" if data is None else _state(data), locked=locked)

    def _locked(self, path: Path) -> str:
        if self._source != "sidecar":
            return f"Captions are not edited here where caption_source is {self._source}."
        return (
            "" if self._suffix in EDITED else f"Captions in {self._suffix} files are not edited here: edit {path.name}."
        )

    def _listed(self, folder: Path) -> dict[str, Path]:
        """Caption files of a folder by the stems of media, as the scan finds them: whatever case their ending has."""
        if folder not in self._folders:
            paths = sorted(folder.iterdir())
            found = {path.stem: path for path in paths if path.suffix.lower() == self._suffix}
            stems = {path.stem for path in paths if path.suffix.lower() in MEDIA_SUFFIXES}
            others = spelled_otherwise(stems, {stem: stem for stem in found})
            self._folders[folder] = found | {stem: found[other] for stem, other in others.items()}
        return self._folders[folder]


def write_caption(written: CaptionOnDisk, text: str, state: str) -> None:
    """Put a caption into its file, in UTF-8. The old text stays where anything goes wrong.

    `state` is that of the text which was edited. DatasetError if the file was changed meanwhile, may not be edited, or
    the text is none; RunError where the disk refuses.
    """
    name = written.path.name
    if written.locked:
        raise DatasetError(written.locked)
    if written.state != state:
        raise DatasetError(f"{name} was changed by another program meanwhile: load the page again, then edit it.")
    if "\0" in text or len(text) > MAX_LETTERS:
        raise DatasetError(f"a caption has at most {MAX_LETTERS} characters, and none of the value 0: shorten it.")
    try:
        data = (text.strip() + "\n").encode()
    except UnicodeEncodeError as error:
        raise DatasetError("the caption holds half a character, which cannot be stored: type it again.") from error
    write_atomic(written.path.resolve(), lambda file: file.write(data), kept="the old caption is kept")


def _text(path: Path, data: bytes) -> str:
    """The text with its lines where it is UTF-8, else as training reads it."""
    whole, _ = read_text_file(path)
    collapsed = " ".join(whole.split())
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").strip()
    except UnicodeDecodeError:
        return collapsed
    return text if " ".join(text.split()) == collapsed else collapsed


def _state(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

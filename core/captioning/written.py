"""Which captions of a folder a machine wrote: a small file remembers the hash of each.

So that a text that a person wrote or changed is known from them, and is never replaced.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..data.media import BadMediaError, check_plain_file
from ..disk import write_atomic
from ..safe_json import parse_json

NAME = ".wantrain_captions.json"  # begins with a dot: a scan does not see it
_VERSION = 1
_KEPT = 4  # hashes of one file
_MOST_BYTES = 64 * 2**20


class MachineCaptions:
    """The captions that machines wrote into a folder, by their files' names relative to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._hashes, self.problem = _read(self._path)

    def is_ours(self, name: str, data: bytes) -> bool:
        """Whether these bytes of a caption file are what a machine wrote there."""
        return _hash(data) in self._hashes.get(name, ())

    def remember(self, texts: dict[str, str]) -> None:
        """To be called before the files are written: both the text that is there and the new one are then known as ours."""
        for name, text in texts.items():
            self._hashes[name] = [*self._hashes.get(name, ()), _hash(text.encode())][-_KEPT:]
        told = {"version": _VERSION, "captions": dict(sorted(self._hashes.items()))}
        data = json.dumps(told, ensure_ascii=False, indent=1).encode()
        write_atomic(self._path, lambda file: file.write(data), kept="the captions so far are kept")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> tuple[dict[str, list[str]], str]:
    """The hashes, and a sentence if the file cannot be used: then all captions there are taken for a person's."""
    if not path.exists():
        return {}, ""
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            found: Any = parse_json(file.read(_MOST_BYTES))
        captions: Any = found["captions"]
        return {str(name): [str(one) for one in hashes] for name, hashes in captions.items()}, ""
    except (OSError, BadMediaError, ValueError, KeyError, TypeError, AttributeError):
        return {}, (
            f"{path} is damaged, so it is not known which captions a machine wrote: all that are there are kept; delete it"
            " if this is told again."
        )

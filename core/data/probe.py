"""Probing one file, and an index on disk that makes every later scan of the same files free."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..disk import write_atomic
from ..errors import ConfigError
from ..serial import from_dict, to_dict
from .clips import probe_clip
from .media import CLIP_SUFFIXES, BadMediaError, check_plain_file, missing_bytes
from .pictures import probe_picture
from .stamps import file_stamp
from .watch import Interrupt

_INDEX_VERSION = 2  # raise when probing itself changes: older indexes are then ignored
_SMALLEST_SIDE = 16
_MAX_HASHES = 100_000  # that are kept in memory
_hashes: dict[Path, tuple[list[int], str]] = {}  # stamp and SHA-256 of files that this process has seen


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a file holds. With a `problem` the file cannot be used and the numbers mean nothing."""

    sha256: str = ""  # of the file's bytes; empty if the file could not even be read
    kind: Literal["image", "video"] = "image"
    width: int = 0  # as displayed
    height: int = 0
    times_us: tuple[int, ...] = ()  # start of each frame in display order, in microseconds from the first
    end_us: int = 0  # end of the last frame; 0 for an image
    read_as: tuple[str, ...] = ()  # how its pixels are read: see `reading.py`
    has_alpha: bool = False  # something in it can be transparent
    remarks: tuple[str, ...] = ()  # clauses that the user is told
    problem: str = ""  # a clause without the file's name


def probe_file(path: Path, interrupt: Interrupt | None = None) -> Probe:
    """Hash and probe one file; what is wrong with it is told in `problem`, nothing is raised for a bad file."""
    sha256 = ""
    try:
        check_plain_file(path)
        before = file_stamp(path)
        sha256 = hash_of(path, before, interrupt)
        found = _probe(path, sha256, interrupt)
        if file_stamp(path) != before:
            raise BadMediaError("it was changed while it was read; scan the folder again", passing=True)
        return found
    except BadMediaError as error:
        return Probe(sha256="" if error.passing else sha256, problem=str(error))
    except OSError as error:
        return Probe(problem=f"it cannot be read ({error.strerror or error})")


def _probe(path: Path, sha256: str, interrupt: Interrupt | None) -> Probe:
    if path.stat().st_size == 0:
        raise BadMediaError("the file is empty")
    missing = missing_bytes(path, interrupt or (lambda: None))
    if missing:
        raise BadMediaError(f"the file is cut off: {missing} or more bytes are missing at its end")
    probe = probe_clip if path.suffix.lower() in CLIP_SUFFIXES else probe_picture
    found = probe(path, interrupt)
    if min(found.size) < _SMALLEST_SIDE:
        raise BadMediaError(f"it is {found.width}x{found.height} pixels, smaller than {_SMALLEST_SIDE} on a side")
    return Probe(sha256=sha256, kind="video" if found.end_us else "image", **vars(found))


def file_sha256(path: Path, interrupt: Interrupt | None = None) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if interrupt is not None:
                interrupt()
    return digest.hexdigest()


def hash_of(path: Path, stamp: list[int], interrupt: Interrupt | None = None) -> str:
    """As `file_sha256`, but while this process lives a file of the same stamp is read only once."""
    known = _hashes.get(path)
    if known is None or known[0] != stamp:
        known = (stamp, file_sha256(path, interrupt))
        _remember(path, *known)
    return known[1]


def _remember(path: Path, stamp: list[int], sha256: str) -> None:
    if len(_hashes) >= _MAX_HASHES:
        _hashes.clear()
    _hashes[path] = (stamp, sha256)


class ProbeIndex:
    """Probes on disk as JSON, keyed by absolute path and by the file's stamp (size, times, place on the disk).

    Two processes may use the same file: writing is atomic and takes in what the other has written meanwhile. At worst
    the one that writes second drops an entry written in the same instant, and that file is probed once more.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = self._read()
        self._changed: dict[str, Any] = {}

    def get(self, path: Path) -> Probe | None:
        """The remembered probe of a file, if the file has not changed since."""
        entry = self._entries.get(str(path))
        try:
            if not entry or entry["stamp"] != file_stamp(path):
                return None
            probe = from_dict(Probe, entry["probe"])
            _remember(path, entry["stamp"], probe.sha256)
            return probe
        except (OSError, ConfigError, KeyError, TypeError):
            return None

    def put(self, path: Path, probe: Probe) -> None:
        """Remember a probe. A file that could not be read at all is not remembered: that may pass."""
        if not probe.sha256:
            return
        try:
            self._changed[str(path)] = {"stamp": file_stamp(path), "probe": to_dict(probe)}
        except OSError:  # gone since it was probed: there is nothing to remember
            return

    def save(self, folder: Path) -> None:
        """Write what is new, and forget files of `folder` that are gone. Does nothing if nothing is new."""
        if self._path is None or not self._changed:
            return
        entries = {**self._read(), **self._changed}
        gone = [name for name in entries if folder in Path(name).parents and not Path(name).exists()]
        for name in gone:
            del entries[name]
        text = json.dumps({"version": _INDEX_VERSION, "files": entries}, separators=(",", ":"))
        write_atomic(self._path, lambda file: file.write(text.encode()))
        self._entries, self._changed = entries, {}

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):  # absent or damaged: everything is probed again
            return {}
        if (
            not isinstance(data, dict)
            or data.get("version") != _INDEX_VERSION
            or not isinstance(data.get("files"), dict)
        ):
            return {}
        return data["files"]

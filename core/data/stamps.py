"""What tells, without reading a file, that its content is still what it was; and such stamps of many files, on disk."""

import json
from pathlib import Path
from typing import Any

from ..disk import write_atomic

_VERSION = 1


def file_stamp(path: Path) -> list[int]:
    """What changes when a file's content does, or when another file is put in its place: told without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


class Stamps:
    """Stamps of files below a folder, by their names relative to it. Lost or damaged, it costs a look at each file.

    Any number of processes may use the same file: writing is atomic and takes in what the others have written meanwhile.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._path = root, root / name
        self._stamps: dict[str, Any] | None = None  # read when they are first asked for
        self._changed: dict[str, list[int]] = {}

    def has(self, name: str, stamp: list[int]) -> bool:
        """Whether the file was kept with this stamp."""
        if self._stamps is None:
            self._stamps = self._read()
        return self._changed.get(name, self._stamps.get(name)) == stamp

    def put(self, name: str, stamp: list[int]) -> None:
        """Keep a file's stamp."""
        self._changed[name] = stamp

    def save(self) -> None:
        """Write what is new, without files that are gone. RunError if the disk refuses."""
        if not self._changed:
            return
        stamps = {**self._read(), **self._changed}
        stamps = {name: stamp for name, stamp in stamps.items() if (self._root / name).exists()}
        text = json.dumps({"version": _VERSION, "files": stamps}, separators=(",", ":"))
        write_atomic(self._path, lambda file: file.write(text.encode()), kept="what was cached so far is kept")
        self._stamps, self._changed = stamps, {}

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        is_known = isinstance(data, dict) and data.get("version") == _VERSION and isinstance(data.get("files"), dict)
        return data["files"] if is_known else {}

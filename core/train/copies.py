"""Copies of checkpoints in a folder of LoRAs, where loaders find them. The oldest are removed: none but the run's own.

`copies.json` in the run's folder says what was written: a file goes only while it is that, by its size and sha256. By these
it is also known again under another name.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..disk import HashingWriter, file_digest, write_atomic
from ..safe_json import read_object, seal
from .run_folder import RunFolder

_LIST = "copies.json"


@dataclass(frozen=True)
class Copy:
    """One file that the run wrote."""

    step: int
    path: str
    size: int
    sha256: str

    @property
    def is_ours(self) -> bool:
        """Whether the file is there, and still what was written."""
        path = Path(self.path)
        try:
            return path.is_file() and path.stat().st_size == self.size and file_digest(path) == (self.size, self.sha256)
        except OSError:
            return False


def copy_name(lora: str, step: int) -> str:
    """Without folder and ending: NAME_high_noise_step000250."""
    return f"{lora}_step{step:06d}"


def copy_checkpoint(run: RunFolder, source: Path, folder: Path, name: str, *, step: int, keep: int) -> Path:
    """Copy the LoRA `source` to `folder`/`name`, then remove the run's oldest copies beyond `keep` (0: none); its path.

    A file of that name which the run did not write stays, and the copy gets a number: NAME_v2. One that was renamed or moved
    stays too, and listed. OSError or RunError if the disk refuses.
    """
    known = read_copies(run)
    again = next((copy for copy in known if copy.step == step and copy.is_ours), None)
    target = Path(again.path) if again and Path(again.path).parent == folder else _free(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    size, sha256 = 0, ""

    def copy(file: BinaryIO) -> None:
        nonlocal size, sha256
        hashing = HashingWriter(file)
        with source.open("rb") as stream:
            shutil.copyfileobj(stream, hashing, 2**20)
        size, sha256 = hashing.size, hashing.sha256

    write_atomic(target, copy)
    kept = [copy for copy in known if copy.path != str(target)]
    kept = sorted([*kept, Copy(step, str(target), size, sha256)], key=lambda copy: copy.step)
    _write(run, kept)
    gone = [copy for copy in kept if Path(copy.path).is_file()][:-keep] if keep else []
    for old in gone:
        if old.is_ours:
            with suppress(OSError):
                Path(old.path).unlink()
    if gone:  # but for one that something has open, on Windows, which is deleted later
        _write(run, [copy for copy in kept if copy not in gone or (copy.is_ours and Path(copy.path).is_file())])
    return target


def read_copies(run: RunFolder) -> list[Copy]:
    """What the run wrote and has not removed, oldest first; [] where its list is missing or damaged."""
    listed = (read_object(run.path / _LIST) or {}).get("copies")
    found: list[Copy] = []
    for item in cast(list[Any], listed) if isinstance(listed, list) else []:
        try:
            found.append(Copy(int(item["step"]), str(item["path"]), int(item["size"]), str(item["sha256"])))
        except (KeyError, TypeError, ValueError):
            continue
    return sorted(found, key=lambda copy: copy.step)


def find_copies(run: RunFolder, folders: Sequence[Path]) -> dict[int, Path]:
    """Where the run's copies are now, by step: in their places, or in `folders` and below under any name."""
    listed = read_copies(run)
    found = {copy.step: Path(copy.path) for copy in listed if _is(Path(copy.path), copy)}
    lost = [copy for copy in listed if copy.step not in found]
    for path in _files(folders) if lost else ():
        found |= {copy.step: path for copy in lost if copy.step not in found and _is(path, copy)}
    return dict(sorted(found.items()))


def run_of_copy(lora: Path, runs: Path) -> RunFolder | None:
    """The run in `runs`, the folder of run folders, that wrote this file, whatever its name is now; None for any other."""
    for path in runs.glob("*"):
        if any(_is(lora, copy) for copy in read_copies(RunFolder(path))):
            return RunFolder(path)
    return None


def _is(path: Path, copy: Copy) -> bool:
    """Whether a file is the copy. What was read once is not read again while its size and time stay."""
    try:
        stat = path.stat()
        return stat.st_size == copy.size and _sha256(path, stat.st_size, stat.st_mtime_ns) == copy.sha256
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    return file_digest(path)[1]


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.safetensors"))


def _write(run: RunFolder, copies: list[Copy]) -> None:
    text = json.dumps(seal({"copies": [asdict(copy) for copy in copies]}), indent=2) + "\n"
    write_atomic(run.path / _LIST, lambda file: file.write(text.encode()))


def _free(folder: Path, name: str) -> Path:
    number, path = 1, folder / f"{name}.safetensors"
    while path.exists():
        number += 1
        path = folder / f"{name}_v{number}.safetensors"
    return path

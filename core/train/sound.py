"""Whether a checkpoint is still what was written, without reading all of it each time.

A file is read to its end once. `.checked.json` in the checkpoint's folder keeps what was found, and holds as long as the
file's size and time are the same.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..disk import file_digest, write_atomic
from ..errors import ConfigError, ModelFileError, RunError
from ..safe_json import as_table, read_object, seal
from ..wan.header import read_header
from .checkpoints import ADAPTER, AVERAGE, STATE, check_place, read_manifest
from .run_folder import RunFolder

CHECKED = ".checked.json"
LORA = (ADAPTER, AVERAGE)  # what a LoRA is taken from
_Seen = tuple[int, int]


def damage(
    checkpoint: Path, names: Collection[str] = (*LORA, STATE), *, read: bool = True, remember: bool = True
) -> str:
    """Why these files of a checkpoint are not what was written, as a clause; "" where they are, or nothing tells.

    Without `read` no file is read that has not been read before: its size and what was found then must do. Without
    `remember` nothing is written.
    """
    try:
        manifest = read_manifest(checkpoint)
        if manifest is None:  # of an earlier version, which noted nothing
            return _by_header(checkpoint, names)
        check_place(manifest, checkpoint, "")
        noted = as_table(manifest.get("files"))
        return next(
            filter(
                None, (_differs(checkpoint / name, noted.get(name), read=read, remember=remember) for name in names)
            ),
            "",
        )
    except RunError as error:
        return str(error).rstrip(".")


def sound_steps(run: RunFolder) -> list[int]:
    """The steps whose LoRA is what was written, oldest first."""
    return [step for step, path in run.checkpoints() if not damage(path, LORA)]


def damaged_lora(run: RunFolder, step: int) -> str:
    """Why the LoRA of this checkpoint is not what was written; "" where it is, or is not there."""
    found = dict(run.checkpoints()).get(step)
    return "" if found is None else damage(found, LORA)


def refuse_damaged(run: RunFolder, step: int) -> None:
    """ConfigError for a checkpoint whose LoRA is not what was written."""
    why = damaged_lora(run, step)
    if why:
        raise ConfigError(f"the checkpoint of step {step} of {run.path.name} is damaged ({why}): choose another.")


def _differs(path: Path, noted: Any, *, read: bool, remember: bool) -> str:
    name, wanted = path.name, as_table(noted)
    try:
        stat = path.stat()
        if not wanted:  # an average of an earlier version
            return _by_header(path.parent, [name])
        if stat.st_size != wanted.get("size"):
            return f"{name} has {stat.st_size} bytes instead of {wanted.get('size')}"
        found = _digest(path, (stat.st_size, stat.st_mtime_ns), read=read, remember=remember)
    except FileNotFoundError:
        return f"{name} is missing" if wanted else ""
    except OSError as error:
        return f"{name} can't be read: {error.strerror or error}"
    return f"{name} has another sha256 than what was written" if found not in (None, wanted.get("sha256")) else ""


def _digest(path: Path, seen: _Seen, *, read: bool, remember: bool) -> str | None:
    """The file's sha256, as found now or before; None where it would have to be read. OSError if it can't be."""
    place = path.with_name(CHECKED)
    known = read_object(place) or {}
    before = known.get(path.name)
    if isinstance(before, list) and before[:2] == [*seen] and isinstance(before[-1], str):
        return before[-1]
    if not read:
        return None
    _, sha256 = file_digest(path)
    if remember:
        text = json.dumps(seal({**known, path.name: [*seen, sha256]}))
        with suppress(RunError):  # of a folder that can't be written to it is found out again the next time
            write_atomic(place, lambda file: file.write(text.encode()))
    return sha256


def _by_header(checkpoint: Path, names: Collection[str]) -> str:
    """Of LoRA files that nothing was noted of: a file that was cut short."""
    for name in names:
        if name in LORA and (checkpoint / name).is_file():
            try:
                read_header(checkpoint / name)
            except ModelFileError as error:
                return str(error).rstrip(".")
    return ""

"""`result.json`: says that a run is finished, at which step, and what its LoRA file was when it was written."""

import json
import os
from pathlib import Path

from ..disk import file_digest, set_aside, write_atomic
from ..errors import START_AGAIN, RunError
from ..safe_json import read_object, seal

RESULT = "result.json"
_sound: dict[Path, tuple[tuple[int, int, int], str]] = {}  # LoRAs that were hashed: which file that was, and its sha256


def write_result(folder: Path, *, step: int, lora: Path) -> None:
    """Mark the run in `folder` as finished. RunError if the disk refuses."""
    try:
        size, sha256 = file_digest(lora)
    except OSError as error:
        raise _unreadable(lora, error) from error
    text = json.dumps(seal({"step": step, "lora": lora.name, "size": size, "lora_sha256": sha256})) + "\n"
    write_atomic(folder / RESULT, lambda file: file.write(text.encode()))


def finished_lora(folder: Path, steps: int) -> Path | None:
    """The LoRA of the run in `folder`, if it was finished at `steps` steps and the file is as it was written.

    A file is hashed once in a process, as long as its size and times stay the same.
    """
    found = _read(folder)
    if found is None or found[0] != steps:
        return None
    _, lora, size, sha256 = found
    try:
        return lora if lora.is_file() and _is_sound(lora, size, sha256) else None
    except OSError as error:
        raise _unreadable(lora, error) from error


def check_lora(lora: Path) -> None:
    """RunError if `lora` lies in a run folder and is not what the run wrote. It is then set aside.

    The run writes it again, from its last checkpoint, when it is started again.
    """
    found = _read(lora.parent)
    if found is None or found[1] != lora or not lora.is_file():
        return
    try:
        if _is_sound(lora, found[2], found[3]):
            return
    except OSError as error:
        raise _unreadable(lora, error) from error
    kept = set_aside(lora)
    raise RunError(
        f"{lora} is damaged: it is not what the run wrote. It is kept as {kept.name}; start the run again, and the LoRA is "
        "written anew from its last checkpoint.",
        about=START_AGAIN,
    )


def _read(folder: Path) -> tuple[int, Path, int | None, str | None] | None:
    """Step, LoRA, its size and its sha256; the last two None where an earlier version wrote it."""
    result = read_object(folder / RESULT)
    if result is None:
        return None
    step, name, size, sha256 = (result.get(key) for key in ("step", "lora", "size", "lora_sha256"))
    if not isinstance(step, int) or not isinstance(name, str) or name != os.path.basename(name) or not name:  # noqa: PTH119
        return None
    return step, folder / name, size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None


def _is_sound(lora: Path, size: int | None, sha256: str | None) -> bool:
    stat = lora.stat()
    if size is None or sha256 is None:
        return True
    if stat.st_size != size:
        return False
    which = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if _sound.get(lora) != (which, sha256):
        if file_digest(lora)[1] != sha256:
            return False
        _sound[lora] = (which, sha256)
    return True


def _unreadable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} can't be read ({error.strerror or error}): check the disk, and start again.", about=START_AGAIN
    )

"""What a model file may claim before it is believed: bounds far above any real model, and JSON that cannot do harm."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..serial import unique_names

MAX_TENSORS = 100_000  # of one file; the largest Wan model has 1,300
MAX_AXES = 8  # of one tensor
MAX_ELEMENTS = 2**48  # of one tensor, axes of size 0 left out
MAX_NAME = 1000  # letters of a tensor's name
MAX_SHARDS = 1000
MAX_JSON_BYTES = 2**26  # of an index or a configuration


def file_size(path: Path) -> int:
    """Bytes of a plain file. ModelFileError for what cannot be read, or could be read for ever: a pipe, a device."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelFileError(f"The model file '{path}' cannot be read: it is a folder, pipe or device; name a file.")
    return found.st_size


def read_json_file(path: Path) -> Any:
    """The content of a small JSON file in UTF-8. ValueError if it is damaged or large, OSError if it cannot be read."""
    if not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as stream:
        raw = stream.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
    return parse_json(raw)


def parse_json(raw: bytes | str, *, unique: bool = False) -> Any:
    """The value of a JSON text; ValueError for anything else. `unique`: no object may hold a name twice."""
    try:
        return json.loads(raw, object_pairs_hook=unique_names if unique else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_shape(shape: object) -> bool:
    """Whether it is a list or tuple of sizes that a real tensor can have."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        return False
    if not all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape):
        return False
    return math.prod(max(1, size) for size in shape) <= MAX_ELEMENTS


def is_name(name: str) -> bool:
    """Whether it can be a tensor's name: text that can be printed and stored as UTF-8."""
    return len(name) <= MAX_NAME and name.isprintable()  # surrogates and control characters are not printable


def shown(value: object, limit: int = 200) -> str:
    """A value from a file, short enough for a sentence."""
    if isinstance(value, str | list | tuple):
        value = value[: limit + 1]
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    except (RecursionError, ValueError):  # nested deeply, or a number of thousands of digits
        return f"of the type {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "..."


def unreadable(path: Path, error: Exception) -> ModelFileError:
    """The error for a file that the system does not let us read."""
    reason = getattr(error, "strerror", None) or error
    return ModelFileError(f"The model file '{path}' cannot be read ({reason}); check the path and its permissions.")

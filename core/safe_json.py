"""JSON of files that may have been damaged, cut short or put there by somebody else: read without trust, and sealed.

A sealed object holds the sha256 of the rest of it, so that a change of any value is noticed. Objects without one, of
earlier versions, are taken as they are.
"""

import json
import math
from pathlib import Path
from typing import Any, cast

from .serial import digest, unique_names

SEAL = "sha256"
MAX_BYTES = 256 * 2**20
_LARGEST = 2**63


def parse_json(data: bytes, *, finite: bool = True, unique: bool = False) -> Any:
    """The value that `data` holds. ValueError, with a clause that says why, for whatever is wrong with it.

    With `finite` numbers that are not finite, or do not fit into 64 bits, are refused too; with `unique` a name that an object
    has twice, of which all but the last value would be lost.
    """
    pairs = unique_names if unique else None
    try:
        text = data.decode("utf-8")
        if not finite:
            return json.loads(text, object_pairs_hook=pairs)
        return json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_float, parse_int=_int)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(data: bytes, *, finite: bool = True) -> dict[str, Any]:
    """As `parse_json`, and ValueError for whatever is no object."""
    value = parse_json(data, finite=finite)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__} instead of an object")
    return value


def read_object(path: Path, *, finite: bool = True) -> dict[str, Any] | None:
    """The object in a file, without its seal; None where the file is missing, or not what was written."""
    try:
        if not path.is_file():  # a pipe would be read for ever
            return None
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return unseal(parse_object(data, finite=finite)) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError):
        return None


def as_table(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """The object with the hash of its content."""
    return {**values, SEAL: digest(values, 64)}


def unseal(values: dict[str, Any]) -> dict[str, Any]:
    """The object without its seal. ValueError if the seal is not that of its content."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values:
        try:
            is_same = digest(rest, 64) == values[SEAL]
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not is_same:
            raise ValueError("its content is not what was written: its sha256 is another")
    return rest


def _refuse(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it holds a number that is too large")
    return number


def _int(text: str) -> int:
    number = int(text) if len(text) < 25 else _LARGEST
    if not -_LARGEST < number < _LARGEST:
        raise ValueError("it holds a number that is too large")
    return number

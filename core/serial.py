"""Frozen dataclasses to JSON and back, strictly: unknown keys, missing keys and wrong types are refused by name."""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .paths import shown

T = TypeVar("T")
MAX_DEPTH = 32  # of tables inside each other
_PLAIN = frozenset({str, int, float, bool, type(None)})
_WORDS = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"), (list, "a list"), (tuple, "a list"),
    (dict, "a table"),
)  # fmt: skip
AUTO = "auto"  # how a person writes None, which TOML has not: the value is left to the program


class UnknownFieldError(ConfigError):
    """A field that this version does not know."""


def to_dict(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain JSON values."""
    if type(value) in _PLAIN:  # nearly everything, in data of thousands of samples
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass `cls` from plain JSON values; `where` names the place in error messages."""
    where = where or cls.__name__
    if isinstance(data, cls):  # made already
        return data
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object with named fields, got {word_of(data)}.")
    hints, fields = _declared(cls)
    unknown = sorted(map(str, set(data) - set(fields)))
    if unknown:
        raise UnknownFieldError(
            f"{where} has the unknown field '{shown(unknown[0])}'; known fields: {', '.join(fields)}."
        )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _coerce(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} lacks the field '{name}'.")
    return cls(**values)


@functools.cache
def _declared(cls: type) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass, by name."""
    return typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}


def check_depth(value: Any, where: str) -> None:
    """ConfigError for tables and lists inside each other as deep as no file of ours has them: reading them recurses."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for table in level if isinstance(table, (dict, list)) for item in _items(table)]
        if not level:
            return
    raise ConfigError(f"{where} has more than {MAX_DEPTH} levels of tables inside each other.")


def _items(table: dict | list) -> Iterable[Any]:
    return table.values() if isinstance(table, dict) else table


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its names and values. ValueError for a name that it has twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"a name occurs twice, '{shown(name, 60)}'")
        found[name] = value
    return found


def digest(value: Any, length: int = 16) -> str:
    """Short hex digest of a JSON value: equal content gives an equal digest on every machine."""
    text = json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _coerce_tuple(args: tuple[Any, ...], value: list | tuple, where: str) -> tuple:
    if args[-1] is Ellipsis and args[0] in _PLAIN and {*map(type, value)} <= {args[0]}:
        return tuple(value)  # of thousands of numbers, too
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{where} must have {len(hints)} elements, got {len(value)}.")
    return tuple(_coerce(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(hints, value, strict=True)))


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and (value is None or (value == AUTO and str not in args)):
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _coerce(hint, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where} is {_shown(value)}; it must be one of {', '.join(map(repr, args))}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return _coerce_tuple(args, value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _float(value, where)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {_shown(value)}; it must be {kind_word(origin or hint)}.")


def word_of(value: Any) -> str:
    """What a value from a file is, in a user's words."""
    return "nothing" if value is None else kind_word(type(value))


def kind_word(kind: Any) -> str:
    """What a type is, in a user's words: "a whole number"."""
    return next((word for known, word in _WORDS if kind is known), getattr(kind, "__name__", str(kind)))


def _float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{where} is {_shown(value)}, which is too large for a number.") from error


def _shown(value: Any) -> str:
    """A value from a file, short enough for a sentence."""
    try:
        return shown(repr(value))
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"

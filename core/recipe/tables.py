"""Settings as the tables of a file: without what has its default, and as lines of TOML."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from ..serial import to_dict


def without_defaults(value: Any) -> dict[str, Any]:
    """A dataclass as nested tables, without what has its default."""
    tables: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        own = getattr(value, item.name)
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        if own != default:
            tables[item.name] = _plain(own)
    return tables


def _plain(value: Any) -> Any:
    """A value of a recipe as its tables have it; of a list of groups that holds one, the one."""
    if dataclasses.is_dataclass(value):
        return without_defaults(value)
    several = cast(tuple[Any, ...], value) if isinstance(value, tuple) else ()
    if several and dataclasses.is_dataclass(several[0]):
        groups = [without_defaults(group) for group in several]
        return groups[0] if len(groups) == 1 else groups
    return to_dict(value)


def toml_lines(tables: Mapping[str, Any], prefix: str) -> list[str]:
    """Values first, then the tables below. JSON's strings, numbers, booleans and lists are TOML's too."""
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in tables.items() if not _is_below(value)
    ]
    for name, table in tables.items():
        if isinstance(table, dict):
            below = cast(dict[str, Any], table)
            inner = toml_lines(below, f"{prefix}{name}.")
            has_values = any(not _is_below(value) for value in below.values())
            lines += ["", f"[{prefix}{name}]", *inner] if has_values else inner
        elif _is_below(table):
            for one in table:
                lines += ["", f"[[{prefix}{name}]]", *toml_lines(one, f"{prefix}{name}.")]
    return lines


def _is_below(value: Any) -> bool:
    """Whether a value is a table, or a list of tables."""
    first = cast(list[Any], value)[:1] if isinstance(value, list) else [value]
    return any(isinstance(one, dict) for one in first)

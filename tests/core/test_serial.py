from dataclasses import dataclass, field
from typing import Literal

import pytest
from wan_train.core.errors import ConfigError
from wan_train.core.serial import digest, from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (1, 2)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 1.0
    inner: Inner = field(default_factory=Inner)
    items: tuple[Inner, ...] = ()
    maybe: int | None = None


def test_round_trip():
    value = Outer("x", 0.5, Inner((3, 4), "b"), (Inner(), Inner((5, 6))), 7)
    assert from_dict(Outer, to_dict(value)) == value
    assert from_dict(Outer, {"name": "x"}) == Outer("x")


def test_whole_numbers_are_fine_where_floats_are_wanted():
    assert from_dict(Outer, {"name": "x", "rate": 2}).rate == 2.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Outer lacks the field 'name'"),
        ({"name": "x", "nmae": 1}, "unknown field 'nmae'"),
        ({"name": 1}, r"Outer\.name is 1; it must be a text"),
        ({"name": "x", "maybe": True}, r"Outer\.maybe is True"),
        ({"name": "x", "inner": {"kind": "c"}}, r"Outer\.inner\.kind is 'c'; it must be one of 'a', 'b'"),
        ({"name": "x", "items": [{"size": [1]}]}, r"items\[0\]\.size must have 2 elements, got 1"),
        ([], "must be an object"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, data)


def test_digest_follows_content_and_not_order():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": (2, 3), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])

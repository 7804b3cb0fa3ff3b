"""The picture of the rooms is that of the imports that are there."""

import re
from pathlib import Path

import pytest
from wan_train.tools.rooms import BASE, BEGIN, END, PAGE, draw, put, read_rooms, reduced

PACK = Path(__file__).resolve().parents[2]


def test_the_picture_in_the_document_is_current():
    text = PAGE.read_text(encoding="utf-8")
    assert text == put(text, draw()), "python -m tools.rooms writes it anew"


def test_every_room_is_in_the_picture_and_in_the_table():
    rooms = {path.name for path in (PACK / "core").iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set(re.findall(r"\w+", draw()))
    page = PAGE.read_text(encoding="utf-8").split("## The life of a run")[0]
    table = set(re.findall(r"^\| `(?:core/)?(\w+)/?`", page, re.MULTILINE))
    assert rooms - table == set()
    assert {name for name in table - rooms if not (PACK / name).exists()} == set()


def test_arrows_are_imports(tmp_path):
    files = {
        "errors.py": "",
        "low/__init__.py": "",
        "low/a.py": "from ..errors import X",
        "high/__init__.py": "",
        "high/b.py": "def f():\n    from ..low.a import Y\n    from ..errors import X\n    from .c import Z",
        "high/deep/__init__.py": "from ...low import a",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    graph = read_rooms(tmp_path)
    assert graph == {BASE: set(), "low": {BASE}, "high": {BASE, "low"}}
    assert reduced(graph) == {BASE: set(), "low": {BASE}, "high": {"low"}}


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="a, b import each other"):
        reduced({"a": {"b"}, "b": {"a"}, "c": {"a"}})


def test_marks_that_are_gone_are_told():
    assert put(f"x {BEGIN}old{END} y", "new") == f"x {BEGIN}\nnew\n{END} y"
    with pytest.raises(ValueError, match="missing"):
        put("no marks", "new")

"""One name for one thing: no two classes or types of the core have the same name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).resolve().parents[2] / "core"
# Equal things in rooms that may not import each other, and a protocol beside what fulfils it.
SAME = {"Act", "Attend", "Json", "Progress", "Recorder", "Say", "TokenShare", "_Nothing"}


def _types(tree: ast.Module) -> Iterator[str]:
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name


def test_no_two_things_have_one_name():
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(CORE.rglob("*.py")):
        for name in _types(ast.parse(path.read_text("utf-8"))):
            places[name].append(path.relative_to(CORE).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in SAME} == {}
    assert set(twice) >= SAME, "a name that is left here stands for one thing now: take it off the list"

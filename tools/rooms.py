"""The picture of the rooms in docs/architecture.md, made from the imports that are really there. Standard library only.

    python -m tools.rooms      writes it

An arrow from a room to another says that the one imports the other. Arrows that follow from others are left out: who
imports `train` has `plan` with it.
"""

import ast
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
PAGE = PACK / "docs" / "architecture.md"
BEGIN, END = "<!-- made by python -m tools.rooms -->", "<!-- end -->"
BASE = "base"  # the files of `core` that lie in no folder
Graph = dict[str, set[str]]


def read_rooms(core: Path) -> Graph:
    """Each room of `core` with the rooms that its files import, inside functions too."""
    rooms: Graph = {BASE: set()}
    for path in sorted(core.rglob("*.py")):
        inside = path.relative_to(core).parts
        room = inside[0] if len(inside) > 1 else BASE
        found = rooms.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == len(inside):
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                found |= {name if (core / name).is_dir() else BASE for name in names} - {room}
    return rooms


def read_nodes(nodes: Path) -> set[str]:
    """The rooms that the nodes import."""
    found = set()
    for path in nodes.rglob("*.py"):
        depth = len(path.relative_to(nodes).parts) + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == depth and (node.module or "").startswith("core."):
                name = (node.module or "").split(".")[1]
                found.add(name if (nodes.parent / "core" / name).is_dir() else BASE)
    return found


def reachable(graph: Graph, start: str) -> set[str]:
    """All rooms that come with `start`, without itself unless there is a circle."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting += graph[room]
    return found


def reduced(graph: Graph) -> Graph:
    """Without the arrows that follow from others. ValueError where rooms import each other in a circle."""
    circle = sorted(room for room in graph if room in reachable(graph, room))
    if circle:
        raise ValueError(f"{', '.join(circle)} import each other in a circle.")
    return {
        room: {
            target for target in targets if not any(target in reachable(graph, other) for other in targets - {target})
        }
        for room, targets in graph.items()
    }


def draw(pack: Path = PACK) -> str:
    """The picture, as a Mermaid block that GitHub draws. https://mermaid.js.org/syntax/flowchart.html"""
    graph = {"nodes": read_nodes(pack / "nodes"), **read_rooms(pack / "core")}
    lines = ["```mermaid", "flowchart TD"]
    for room, targets in sorted(reduced(graph).items()):
        lines += [f"    {room} --> {target}" for target in sorted(targets)]
    return "\n".join([*lines, "```"])


def put(text: str, picture: str) -> str:
    """The page with the picture between its marks. ValueError where they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the marks '{BEGIN}' and '{END}' are missing.")
    return f"{before}{BEGIN}\n{picture}\n{END}{after}"


def main() -> int:
    """Write the picture; returns the exit status."""
    try:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), draw()), encoding="utf-8")
    except ValueError as error:
        print(f"{PAGE}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

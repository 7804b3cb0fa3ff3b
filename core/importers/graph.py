"""Workflow files of ComfyUI (UI format 0.4) as they are edited: values by the names of widgets, further nodes and links."""

import copy
from collections.abc import Iterator
from typing import Any

from ..settings.option import Option, Widget

Json = dict[str, Any]
MUTED = 2  # a node's mode
_GAP, _TITLE = 60, 34


class DrawnWorkflow:
    """A workflow; changed in place."""

    def __init__(self, ui: Json) -> None:
        self.ui = copy.deepcopy(ui)
        self.nodes: list[Json] = self.ui["nodes"]

    def of_type(self, kind: str) -> list[Json]:
        """The nodes of a class, from top to bottom of their ids."""
        return [node for node in self.nodes if node["type"] == kind]

    def add(self, node: Json, *, x: float, y: float) -> Json:
        """A copy of a node, with an id of its own and without links."""
        made = copy.deepcopy(node)
        self.ui["last_node_id"] += 1
        made["id"] = self.ui["last_node_id"]
        made["pos"] = [x, y]
        made["order"] = len(self.nodes)
        for item in made["inputs"]:
            item["link"] = None
        for item in made["outputs"]:
            item["links"] = None
        self.nodes.append(made)
        return made

    def link(self, source: Json, output: int, target: Json, socket: str) -> None:
        """Connect an output to an input by its name, which loses the link that it has."""
        index, item = next((i, item) for i, item in enumerate(target["inputs"]) if item["name"] == socket)
        if item.get("link") is not None:
            self._drop(item["link"])
        self.ui["last_link_id"] += 1
        number = self.ui["last_link_id"]
        item["link"] = number
        out = source["outputs"][output]
        out["links"] = [*(out["links"] or []), number]
        self.ui["links"].append([number, source["id"], output, target["id"], index, out["type"]])

    def targets(self, source: Json) -> Iterator[tuple[Json, str]]:
        """(node, name of its input) of everything that a node's outputs lead to."""
        by_id = {node["id"]: node for node in self.nodes}
        for _, from_id, _, to_id, index, _ in list(self.ui["links"]):
            if from_id == source["id"]:
                yield by_id[to_id], by_id[to_id]["inputs"][index]["name"]

    def note(self, text: str, *, like: Json) -> None:
        """A further note, above those that stand there; the graph opens with it in view."""
        top = min(self.of_type("MarkdownNote"), key=lambda node: node["pos"][1])
        height = top["size"][1] + _TITLE + _GAP / 2
        made = self.add(like, x=top["pos"][0], y=top["pos"][1] - height)
        made["size"] = list(top["size"])
        made["widgets_values"] = [text]
        self.ui["extra"]["ds"]["offset"][1] += height

    def make_room(self, nodes: list[Json]) -> None:
        """Let the box around the first of these nodes reach down to the last."""
        first = nodes[0]
        for group in self.ui["groups"]:
            left, top, width, height = group["bounding"]
            if left <= first["pos"][0] < left + width:
                bottom = max(node["pos"][1] + node["size"][1] for node in nodes) + 24
                group["bounding"][3] = max(height, bottom - top)

    def _drop(self, number: int) -> None:
        self.ui["links"] = [link for link in self.ui["links"] if link[0] != number]
        for node in self.nodes:
            for out in node["outputs"]:
                if out["links"] and number in out["links"]:
                    out["links"] = [link for link in out["links"] if link != number] or None


def below(node: Json) -> tuple[float, float]:
    """Where a further node stands below this one."""
    return node["pos"][0], node["pos"][1] + node["size"][1] + _TITLE + _GAP / 2


def widget_names(node: Json) -> list[str]:
    """Names of the widgets, in the order of widgets_values."""
    return [item["name"] for item in node["inputs"] if "widget" in item]


def set_widget(node: Json, name: str, value: Any) -> None:
    """Write a widget's value."""
    node["widgets_values"][widget_names(node).index(name)] = value


def add_widgets(node: Json, options: list[tuple[Option, Widget]]) -> None:
    """Widgets that came after the workflow was saved, at their places among the others, with their defaults."""
    place = {widget.name: widget.place for _, widget in options}
    for item, widget in options:
        names = widget_names(node)
        if widget.name in names:
            continue
        before = [i for i, name in enumerate(names) if place.get(name, -1) < widget.place and name in place]
        at = 1 + max(before, default=len(names) - 1)
        sockets = len(node["inputs"]) - len(names)
        kinds = {int: "INT", float: "FLOAT", bool: "BOOLEAN"}
        kind = "COMBO" if item.choices or widget.words else kinds.get(item.kinds[0], "STRING")
        entry = {"name": widget.name, "type": kind, "widget": {"name": widget.name}, "link": None}
        node["inputs"].insert(sockets + at, entry)
        node["widgets_values"].insert(at, widget.shows(item.default))

"""A part of a workflow as a subgraph blueprint: one node that ComfyUI's page offers beside the pack's own.

The format is that of ComfyUI's own `blueprints` folder: a workflow 0.4 of a single node, with its definition.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .layout import FRAME, NODE_WIDTH, PACK_ID, SOCKET, WIDGET
from .workflow import Json

INPUT, OUTPUT = -10, -20  # ids that the format gives to the two sides of a subgraph
WIDTH, GAP = 160, 120


@dataclass(frozen=True)
class Entry:
    """An input of the blueprint: its name, and the inputs within that it leads to, (node id, name)."""

    name: str
    targets: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Exit:
    """An output of the blueprint: its name, and where it comes from within."""

    name: str
    source: int
    slot: int


def blueprint(
    name: str, ui: Json, entries: Sequence[Entry], exits: Sequence[Exit], *, category: str, description: str
) -> Json:
    """`ui`, a workflow as `api_to_ui` lays it out, behind one node. Its inputs with a widget have one on that node too."""
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_ID}/blueprint/{name}"))
    nodes = {node["id"]: node for node in ui["nodes"]}
    links = [_link(*link) for link in ui["links"]]
    sides = [_entry(key, slot, entry, nodes, links) for slot, entry in enumerate(entries)]
    ends = [_exit(key, slot, end, nodes, links) for slot, end in enumerate(exits)]
    right = max(node["pos"][0] + node["size"][0] for node in ui["nodes"])
    definition = {
        "id": key,
        "version": 1,
        "state": {
            "lastGroupId": len(ui["groups"]),
            "lastNodeId": ui["last_node_id"],
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT, "bounding": [-WIDTH - GAP, 0, WIDTH, 40 + SOCKET * len(entries)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + GAP, 0, WIDTH, 40 + SOCKET * len(exits)]},
        "inputs": [side for side, _ in sides],
        "outputs": ends,
        "widgets": [],
        "nodes": ui["nodes"],
        "groups": ui["groups"],
        "links": links,
        "extra": {"workflowRendererVersion": "LG"},
        "category": category,
        "description": description,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(key, name, sides, ends)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def _link(number: int, source: int, slot: int, target: int, entry: int, kind: str) -> Json:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, (number, source, slot, target, entry, kind), strict=True))


def _side(key: str, kind: str, name: str, type_: str, links: list[int]) -> Json:
    return {"id": str(uuid.uuid5(uuid.UUID(key), f"{kind}/{name}")), "name": name, "type": type_, "linkIds": links}


def _entry(key: str, slot: int, entry: Entry, nodes: dict[int, Json], links: list[Json]) -> tuple[Json, Any]:
    """The definition's input, and what its widget holds: (True, value), or (False, None) for one without."""
    numbers, held, kind = [], (False, None), ""
    for node_id, name in entry.targets:
        node = nodes[node_id]
        index, item = next((i, one) for i, one in enumerate(node["inputs"]) if one["name"] == name)
        links.append(_link(len(links) + 1, INPUT, slot, node_id, index, item["type"]))
        item["link"] = len(links)
        numbers.append(len(links))
        kind = item["type"]
        if "widget" in item:
            names = [one["name"] for one in node["inputs"] if "widget" in one]
            held = True, node["widgets_values"][names.index(name)]
    return _side(key, "input", entry.name, kind, numbers), held


def _exit(key: str, slot: int, end: Exit, nodes: dict[int, Json], links: list[Json]) -> Json:
    out = nodes[end.source]["outputs"][end.slot]
    links.append(_link(len(links) + 1, end.source, end.slot, OUTPUT, slot, out["type"]))
    out["links"] = [*(out["links"] or []), len(links)]
    return _side(key, "output", end.name, out["type"], [len(links)])


def _outer(key: str, name: str, sides: list[tuple[Json, Any]], ends: list[Json]) -> Json:
    """The node that stands for it all."""
    inputs, values = [], []
    for side, (has_widget, value) in sides:
        widget = {"widget": {"name": side["name"]}} if has_widget else {}
        inputs.append({"name": side["name"], "type": side["type"], **widget, "link": None})
        values += [value] if has_widget else []
    shown = [[str(-1), item["name"]] for item in inputs if "widget" in item]
    sockets = max(len(inputs) - len(shown), len(ends))
    return {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [NODE_WIDTH, FRAME + SOCKET * sockets + WIDGET * len(shown)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": end["name"], "type": end["type"], "links": None} for end in ends],
        "title": name,
        "properties": {"proxyWidgets": shown, "cnr_id": PACK_ID},
        "widgets_values": values,
    }

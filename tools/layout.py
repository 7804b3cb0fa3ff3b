"""Prompts (API format) to workflow files (UI format 0.4), laid out from left to right. Standard library only."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from .workflow import Field, Json, WorkflowError, node_info, walk_fields

PACK_ID = "wan-train"  # the registry's name of this pack, so that the host can offer to install it
NODE_WIDTH, GAP = 340, 60
TITLE = 30  # height of a node's title bar; LiteGraph draws it above `pos`
FOOTER = 30  # of Nodes 2.0, below a node: its button for advanced inputs
GROUP_TITLE, PADDING = 50, 24
NOTE_HEIGHT = 360
SCALE, CORNER = 0.85, (95, 150)  # how a graph opens; pixels of the window that the page's own bars take, left and above

# Heights of parts of a node, the larger of the two renderers' (measured in both, ComfyUI front end 1.49).
FRAME, SOCKET, WIDGET, TEXT, BUTTON, PICTURE = 36, 20, 30, 95, 24, 280
PROGRESS = 36  # the line that the host writes on a node while it works
# Widgets that our page adds to a node (web/*.js), and nothing in the node's definition tells of.
PAGE_WIDGETS = {
    "DatasetFromFolder": 110 + BUTTON,
    "JoinDatasets": 110,
    "CacheLatents": 60,
    "CacheT5": 60,
    "LoadWanDiT": 46,
    "MergeStages": 90,
    "WanLoRAFromFile": 46,
    "TrainLoRAStage": 240 + BUTTON,  # a chart, and Check
}
GROWTH = {"TrainLoRAStage": 210}  # by previews, once there are any


@dataclass(frozen=True, kw_only=True)
class Page:
    """How a prompt is presented. Node ids are the keys of the prompt."""

    groups: dict[str, list[str]] = field(default_factory=dict)  # title to node ids, from left to right
    notes: tuple[str, ...] = ()  # Markdown, above the graph
    columns: dict[str, int] = field(default_factory=dict)  # node id to its place in the group; otherwise by its depth
    models: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # node id to name, url, directory
    version: str = "0.1.0"  # of this pack


def api_to_ui(prompt: Json, object_info: Json, page: Page | None = None) -> Json:
    """Lay out a prompt. Ids that are numbers stay; others are numbered in order. Widgets without value get defaults."""
    page = page or Page()
    ids = _number(prompt)
    nodes = {key: _node(ids[key], prompt[key], object_info, page) for key in prompt}
    for key, models in page.models.items():
        nodes[key]["properties"]["models"] = models
    links = _connect(prompt, nodes, ids)
    depth = {key: _depth(key, prompt) for key in prompt}
    for order, key in enumerate(sorted(prompt, key=lambda key: (depth[key], ids[key]))):
        nodes[key]["order"] = order
    groups = _place(nodes, {**depth, **page.columns}, page.groups)
    top, width = _raise(nodes, groups, page) if page.notes else (0, NODE_WIDTH)
    notes = [
        _note(max(ids.values()) + 1 + i, i, text, len(nodes) + i, (width + GAP / 2) / len(page.notes) - GAP / 2)
        for i, text in enumerate(page.notes)
    ]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_ID}/{json.dumps(prompt, sort_keys=True)}")),
        "revision": 0,
        "last_node_id": max(ids.values()) + len(notes),
        "last_link_id": len(links),
        "nodes": [*nodes.values(), *notes],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {
            "ds": {"scale": SCALE, "offset": [CORNER[0] / SCALE, CORNER[1] / SCALE - top]},
            **({"wan_train_opens_at_ds": True} if page.notes else {}),  # read by web/view.js
        },
        "version": 0.4,
    }


def _number(prompt: Json) -> dict[str, int]:
    if all(key.isdigit() for key in prompt):
        return {key: int(key) for key in prompt}
    return {key: index + 1 for index, key in enumerate(prompt)}


def _is_link(value: Any, prompt: Json) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in prompt


def _node(node_id: int, entry: Json, object_info: Json, page: Page) -> Json:
    info = node_info(object_info, entry["class_type"])
    sockets, widgets, values = [], [], []
    for item, value in walk_fields(info, lambda item: _widget_value(item, entry["inputs"])):
        if not item.is_widget:
            sockets.append(
                {"name": item.name, "type": item.type, "link": None, **({"shape": 7} if item.optional else {})}
            )
            continue
        if item.name not in entry["inputs"] and item.options.get("hidden"):
            continue
        widgets.append({"name": item.name, "type": item.type, "widget": {"name": item.name}, "link": None})
        values.append(value)
        values.extend(["fixed"] * item.has_control + ["image"] * item.has_upload)
    own = info.get("python_module", "").startswith("custom_nodes.")
    properties = {"Node name for S&R": entry["class_type"], "cnr_id": PACK_ID if own else "comfy-core"}
    if own:
        properties["ver"] = page.version
    node = {
        "id": node_id,
        "type": entry["class_type"],
        "pos": [0, 0],
        "size": [NODE_WIDTH, _height(info, entry, len(sockets))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets + widgets,
        "outputs": [
            {"name": name, "type": kind if isinstance(kind, str) else "COMBO", "links": None}
            for name, kind in zip(info["output_name"], info["output"], strict=True)
        ],
        "properties": properties,
        "widgets_values": values,
    }
    title = entry.get("_meta", {}).get("title")
    if title and title != info.get("display_name"):
        node["title"] = title
    return node


def _widget_value(item: Field, inputs: Json) -> Any:
    value = inputs.get(item.name, item.default)
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    return item.default if isinstance(value, list) else value  # a list is a link: the page keeps the default below it


def _height(info: Json, entry: Json, num_sockets: int) -> int:
    """Height that a node has in either renderer, advanced inputs folded, with what it shows after a run."""
    kind = entry["class_type"]
    height = FRAME + SOCKET * max(num_sockets, len(info["output"]))
    folded = shows_picture = False
    for item, _ in walk_fields(info, lambda item: _widget_value(item, entry["inputs"])):
        if not item.is_widget or item.options.get("hidden"):
            continue
        shows_picture |= bool(item.has_upload)
        if item.options.get("advanced"):
            folded = True
        else:
            height += TEXT if item.options.get("multiline") else WIDGET * (1 + item.has_control)
    height += BUTTON * folded
    if info.get("python_module", "").startswith("custom_nodes."):
        return height + PAGE_WIDGETS.get(kind, 0) + PROGRESS
    return height + PICTURE * bool(shows_picture or info.get("output_node"))


def _connect(prompt: Json, nodes: dict[str, Json], ids: dict[str, int]) -> list[list[Any]]:
    links: list[list[Any]] = []
    for key, entry in prompt.items():
        slots = {item["name"]: (index, item) for index, item in enumerate(nodes[key]["inputs"])}
        for name, value in entry["inputs"].items():
            if name not in slots:
                raise WorkflowError(f"Node {key} ({entry['class_type']}) has no input named '{name}'.")
            if not _is_link(value, prompt):
                continue
            index, item = slots[name]
            output = nodes[value[0]]["outputs"][value[1]]
            item["link"] = len(links) + 1
            output["links"] = [*(output["links"] or []), item["link"]]
            links.append([item["link"], ids[value[0]], value[1], ids[key], index, output["type"]])
    return links


def _depth(key: str, prompt: Json) -> int:
    """Number of links on the longest way from a node without inputs."""
    sources = [value[0] for value in prompt[key]["inputs"].values() if _is_link(value, prompt)]
    return 1 + max((_depth(source, prompt) for source in sources), default=-1)


def _place(nodes: dict[str, Json], column: dict[str, int], groups: dict[str, list[str]]) -> list[Json]:
    """Set `pos` of every node: groups side by side, in each group its columns. Returns the group boxes."""
    grouped = {key for keys in groups.values() for key in keys}
    sections = [*groups.items(), ("", [key for key in nodes if key not in grouped])]
    boxes, left = [], 0
    for index, (title, keys) in enumerate(sections):
        if not keys:
            continue
        x, bottom = left + PADDING, 0
        for level in sorted({column[key] for key in keys}):
            y = GROUP_TITLE + TITLE
            for key in [key for key in keys if column[key] == level]:
                nodes[key]["pos"] = [x, y]
                end = y + nodes[key]["size"][1] + GROWTH.get(nodes[key]["type"], 0) + FOOTER
                bottom = max(bottom, end)
                y = end + TITLE + GAP // 2
            x += NODE_WIDTH + GAP
        width = x - GAP + PADDING - left
        if title:
            box = {"id": index + 1, "title": title, "bounding": [left, 0, width, bottom + PADDING], "color": "#3f789e"}
            boxes.append({**box, "font_size": 24, "flags": {}})
        left += width + GAP
    return boxes


def _raise(nodes: dict[str, Json], groups: list[Json], page: Page) -> tuple[float, float]:
    """Notes stand above the first group, and the others reach up beside them. (top of the graph, width of that group)."""
    top = -(NOTE_HEIGHT + TITLE + GAP / 2)
    first = groups[0]["title"] if groups else ""
    for key, node in nodes.items():
        node["pos"][1] += top if groups and key not in page.groups[first] else 0
    for box in groups[1:]:
        box["bounding"][1] = top
    return top, groups[0]["bounding"][2] if groups else 2 * NODE_WIDTH


def _note(node_id: int, index: int, text: str, order: int, width: float) -> Json:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "title": "Read this first" if index == 0 else "Good to know",
        "pos": [index * (width + GAP / 2), TITLE - (NOTE_HEIGHT + TITLE + GAP / 2)],
        "size": [width, NOTE_HEIGHT],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }

"""A workflow of ComfyUI as nodes and what leads into them: files as saved by the page, subgraphs too, and for the API."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..wan.limits import read_json_file

Json = dict[str, Any]
MUTED, BYPASSED = 2, 4  # a node's mode
_INPUTS, _OUTPUTS = -10, -20  # ids of a subgraph's own ends
_MOST_NODES, _DEEPEST = 5000, 8
# Widgets of nodes in files that do not name them.
_WIDGETS = {
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "LoraLoaderBypassModelOnly": ("lora_name", "strength_model"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderBypass": ("lora_name", "strength_model", "strength_clip"),
    "WanVideoLoraSelect": ("lora", "strength"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UnetLoaderGGUF": ("unet_name",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "WanVideoModelLoader": ("model",),
}


@dataclass
class Node:
    """One node; `sources` are the keys of the nodes that its inputs come from, by the input's name."""

    key: str
    kind: str
    values: Json
    loose: list[Any]  # all values, also those without a known name
    mode: int = 0
    sources: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_off(self) -> bool:
        """Whether it is muted or bypassed."""
        return self.mode in (MUTED, BYPASSED)


Graph = dict[str, Node]


def read_graph(path: Path) -> Graph:
    """The nodes of a workflow's file. ConfigError if it is none."""
    try:
        data = read_json_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no workflow (it can't be read as JSON): save it with Save or Export.") from error
    return graph_of(data, str(path))


def graph_of(data: Any, where: str = "the workflow") -> Graph:
    """The nodes of a workflow, as the page saves it or as the API takes it. ConfigError if it is none."""
    try:
        if isinstance(data, dict) and isinstance(data.get("nodes"), list):
            graph: Graph = {}
            subgraphs = {str(item["id"]): item for item in data.get("definitions", {}).get("subgraphs", [])}
            _Levels(graph, subgraphs).add(data, "", 0, {}, 0)
            return graph
        if isinstance(data, dict) and data and all(isinstance(n, dict) and "class_type" in n for n in data.values()):
            return _of_api(data)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConfigError(f"{where} is a damaged workflow ({type(error).__name__}): save it again.") from error
    raise ConfigError(f"{where} is no workflow of ComfyUI: save one with Save, Export or Export (API).")


def downstream(graph: Graph, key: str) -> list[Node]:
    """The nodes that take something from `key`."""
    return [node for node in graph.values() if key in node.sources.values()]


def upstream(graph: Graph, key: str) -> Iterator[Node]:
    """The nodes that the model on `key` comes from, the nearest first: along inputs that carry a model."""
    seen = {key}
    while True:
        sources = graph[key].sources
        found = next((sources[name] for name in sources if "model" in name.lower() or name == "any"), None)
        if found is None or found in seen or found not in graph:
            return
        seen.add(found)
        key = found
        yield graph[key]


def _of_api(data: Mapping[str, Json]) -> Graph:
    graph: Graph = {}
    for key, item in data.items():
        inputs = item.get("inputs", {})
        values = {name: value for name, value in inputs.items() if not _is_link(value)}
        sources = {name: str(value[0]) for name, value in inputs.items() if _is_link(value)}
        graph[key] = Node(key, str(item["class_type"]), values, list(values.values()), 0, sources)
    return graph


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and isinstance(value[0], str)


@dataclass
class _Levels:
    """Adds the nodes of a workflow, and of each place where a subgraph stands, to `graph`."""

    graph: Graph
    subgraphs: Mapping[str, Json]
    num_nodes: int = 0

    def add(self, level: Json, prefix: str, mode: int, given: Mapping[int, str], deep: int) -> dict[int, str]:
        """Add one level; `given` are the keys behind its inputs. Returns the keys behind its outputs, by slot."""
        self.num_nodes += len(level["nodes"])
        if self.num_nodes > _MOST_NODES or deep > _DEEPEST:
            raise ValueError("too many nodes")
        links = {link["id"]: link for link in map(_link, level.get("links", []))}
        inner: dict[tuple[str, int], str] = {}  # the keys behind the outputs of this level's subgraphs
        nodes = [item for item in level["nodes"] if str(item["type"]) not in self.subgraphs]
        for item in nodes:
            key, (values, loose) = f"{prefix}{item['id']}", _values(item)
            self.graph[key] = Node(key, str(item["type"]), values, loose, item.get("mode", 0) or mode)

        def source(number: Any) -> str | None:
            link = links.get(number)
            if link is None:
                return None
            if link["origin_id"] == _INPUTS:
                return given.get(link["origin_slot"])
            known = inner.get((str(link["origin_id"]), link["origin_slot"]))
            return known or f"{prefix}{link['origin_id']}"

        for item in level["nodes"]:
            if str(item["type"]) in self.subgraphs:
                inputs = {i: found for i, s in enumerate(item.get("inputs", [])) if (found := source(s.get("link")))}
                one = self.subgraphs[str(item["type"])]
                outputs = self.add(one, f"{prefix}{item['id']}:", item.get("mode", 0) or mode, inputs, deep + 1)
                inner |= {(str(item["id"]), slot): key for slot, key in outputs.items()}
        for item in nodes:
            named = {s.get("name", ""): source(s.get("link")) for s in item.get("inputs", [])}
            node = self.graph[f"{prefix}{item['id']}"]
            node.sources = {name: found for name, found in named.items() if found}
            for name in node.sources:  # a widget whose value comes over a wire keeps an old one
                node.values.pop(name, None)
        ends = [link for link in links.values() if link["target_id"] == _OUTPUTS]
        return {link["target_slot"]: found for link in ends if (found := source(link["id"]))}


def _link(link: Any) -> Json:
    if isinstance(link, dict):
        return link
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return dict(zip(names, link, strict=False))


def _values(item: Json) -> tuple[Json, list[Any]]:
    stored = item.get("widgets_values") or []
    if isinstance(stored, dict):
        return dict(stored), list(stored.values())
    names = [s["widget"]["name"] for s in item.get("inputs", []) if isinstance(s.get("widget"), dict)]
    names = list(_WIDGETS.get(str(item["type"]), ())) or names
    return dict(zip(names, stored, strict=False)), list(stored)

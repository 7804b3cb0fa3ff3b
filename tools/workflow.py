"""Workflow files to prompts and back, without a browser. Standard library only.

UI format: graph version 0.4 (nodes with positions, links as arrays, widget values by position). API format: what
POST /prompt takes. Both directions read the node definitions that a running ComfyUI gives under /object_info.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize")
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4


class WorkflowError(Exception):
    """A workflow that cannot be converted. The message is one sentence for the user."""


@dataclass(frozen=True)
class Field:
    """One input of a node, as /object_info describes it."""

    name: str
    type: str
    options: Json
    optional: bool

    @property
    def is_widget(self) -> bool:
        """Whether the page shows it as a control (a link may still replace the value)."""
        return self.type in (*WIDGET_TYPES, DYNAMIC_COMBO) and not self.options.get("forceInput")

    @property
    def has_control(self) -> bool:
        """Whether a `control after generate` value follows in widgets_values; the page adds it to seeds by itself."""
        given = self.options.get("control_after_generate")
        return bool(given) if given is not None else self.type == "INT" and self.name in ("seed", "noise_seed")

    @property
    def has_upload(self) -> bool:
        """Whether the page adds an upload button, which takes a place in widgets_values."""
        return any(key.endswith("_upload") and value for key, value in self.options.items())

    @property
    def default(self) -> Any:
        """The value that the page starts with."""
        if "default" in self.options:
            return self.options["default"]
        empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
        choices = self.options.get("options")
        if self.type in empty or not choices:
            return empty.get(self.type)
        return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]

    def chosen(self, value: Any) -> list["Field"]:
        """The further inputs that a dynamic combo brings with it when `value` is chosen."""
        if self.type != DYNAMIC_COMBO:
            return []
        for option in self.options.get("options", []):
            if option["key"] == value:
                return _fields(option["inputs"], prefix=f"{self.name}.")
        return []


def _fields(inputs: Json, prefix: str = "") -> list[Field]:
    found = []
    for section in ("required", "optional"):
        for name, spec in inputs.get(section, {}).items():
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if isinstance(spec[0], list):
                found.append(Field(prefix + name, "COMBO", {"options": spec[0], **options}, section == "optional"))
            else:
                found.append(Field(prefix + name, spec[0], options, section == "optional"))
    return found


def walk_fields(info: Json, value_of: Callable[[Field], Any]) -> Iterator[tuple[Field, Any]]:
    """All inputs of a node in the page's order, each with its value; dynamic combos unfold as their value says."""
    queue = _fields(info["input"])
    while queue:
        field = queue.pop(0)
        value = value_of(field) if field.is_widget else None
        yield field, value
        queue[:0] = field.chosen(value)


def node_info(object_info: Json, class_type: str) -> Json:
    """Definition of a node class, or a WorkflowError that names it."""
    if class_type not in object_info:
        raise WorkflowError(
            f"The workflow uses the node '{class_type}', which this ComfyUI does not have: update ComfyUI, or look in "
            "its log for the reason why the node did not load."
        )
    return object_info[class_type]


def node_title(node: Json, object_info: Json) -> str:
    """What the page writes on top of a UI node."""
    return node.get("title") or object_info.get(node["type"], {}).get("display_name") or node["type"]


class _Graph:
    """Nodes and links of a UI workflow, with reroutes, primitives, muted and bypassed nodes resolved."""

    def __init__(self, ui: Json) -> None:
        if ui.get("definitions", {}).get("subgraphs"):
            raise WorkflowError("The workflow has subgraphs, which this converter does not read: unpack them first.")
        self.nodes = {node["id"]: node for node in ui["nodes"]}
        self.links = {link[0]: (link[1], link[2]) for link in ui["links"]}

    def source(self, link: int | None) -> Any:
        """What feeds a link: [node id, slot], a primitive's value as {"value": ...}, or None."""
        if link is None or link not in self.links:
            return None
        node_id, slot = self.links[link]
        node = self.nodes[node_id]
        if node.get("mode", 0) == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return {"value": node["widgets_values"][0]}
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"))
        if node.get("mode", 0) == BYPASSED:
            wanted = node["outputs"][slot]["type"]
            through = [entry for entry in node.get("inputs", []) if entry["type"] == wanted and entry.get("link")]
            return self.source(through[0]["link"]) if through else None
        return [str(node_id), slot]


def ui_to_api(ui: Json, object_info: Json) -> Json:
    """Convert a UI workflow to the prompt that the page would send for it.

    Raises WorkflowError for node classes that the host lacks and for subgraphs. Of inputs that grow (Autogrow) those that
    are connected are kept.
    """
    graph = _Graph(ui)
    prompt = {}
    for node in ui["nodes"]:
        if node["type"] in (*NOTES, "Reroute", "PrimitiveNode") or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        info = node_info(object_info, node["type"])
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": _api_inputs(node, info, graph),
            "_meta": {"title": node_title(node, object_info)},
        }
    return prompt


def _api_inputs(node: Json, info: Json, graph: _Graph) -> Json:
    values = node.get("widgets_values") or []
    take = values.get if isinstance(values, dict) else _positional(list(values))
    links = {entry["name"]: graph.source(entry.get("link")) for entry in node.get("inputs", [])}
    inputs: Json = {}
    for field, value in walk_fields(info, lambda field: take(field if isinstance(values, list) else field.name)):
        source = links.get(field.name)
        if isinstance(source, dict):
            inputs[field.name] = source["value"]
        elif source is not None:
            inputs[field.name] = source
        elif isinstance(value, list):  # a bare list would be read as a link
            inputs[field.name] = {"__value__": value}
        elif value is not None:
            inputs[field.name] = value
        elif field.is_widget and not field.optional:
            inputs[field.name] = field.default
    growing = tuple(f"{field.name}." for field in _fields(info["input"]) if field.type == AUTOGROW)
    inputs |= {name: source for name, source in links.items() if growing and name.startswith(growing) and source}
    return inputs


def _positional(values: list[Any]) -> Callable[[Any], Any]:
    def take(field: Field) -> Any:
        value = values.pop(0) if values else None
        if field.has_control and values and values[0] in CONTROL_VALUES:
            values.pop(0)
        if field.has_upload and values:
            values.pop(0)
        return value

    return take

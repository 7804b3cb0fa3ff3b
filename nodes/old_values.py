"""Prompts of earlier versions, with values that widgets no longer have: written in today's words as they arrive.

The host holds each value against the widget's list before a node is asked. The page does the same when it opens a workflow
(`web/old_values.js`); here it is for prompts that programs send.
"""

from typing import Any

from ..core.recipe.recipe import widgets_of
from ..core.settings.option import Widget


def renew_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """The body of a request to queue a prompt; changed in place. Whatever is no prompt is left to the host."""
    prompt = request.get("prompt") if isinstance(request, dict) else None
    for node in prompt.values() if isinstance(prompt, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict):
            _renew(inputs, _widgets(node.get("class_type")))
    return request


def _widgets(node: Any) -> list[Widget]:
    """Those of a node that have had other values."""
    return [widget for _, widget in widgets_of(node) if widget.old] if isinstance(node, str) else []


def _renew(inputs: dict[str, Any], widgets: list[Widget]) -> None:
    for widget in widgets:
        value = inputs.get(widget.name)
        if isinstance(value, (bool, str)) and widget.is_old(value):
            inputs[widget.name] = widget.shows(widget.meaning(value))

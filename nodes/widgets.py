"""The widgets of options, made from their declarations in `core/settings`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..core.recipe.recipe import widgets_of
from ..core.settings.option import TRAIN, Option, Widget


def inputs_of(
    node: str,
    first: Sequence[Any] = (),
    *,
    before: Mapping[str, Any] | None = None,
    last: Sequence[Any] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
    only: Callable[[Option], bool] | None = None,
) -> list[Any]:
    """All inputs of a node: `first`, then the widgets of its options in their order, then `last`.

    `before`: name of a widget to an input that stands before it. `choices`: name of a widget to what only the host knows.
    `only`: for a node that has some of the options of `node`.
    """
    inputs = list(first)
    for item, widget in widgets_of(node):
        if only is not None and not only(item):
            continue
        inputs += [before[widget.name]] if before and widget.name in before else []
        inputs.append(widget_input(item, widget, (choices or {}).get(widget.name)))
    return [*inputs, *last]


def meanings(node: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of a node's widgets mean, for its options."""
    widgets = {widget.name: widget for _, widget in widgets_of(node)}
    return {name: widgets[name].meaning(value) if name in widgets else value for name, value in values.items()}


# The part of a node's advanced inputs that a group of options belongs to: a page may show one part at a time (web/folding.js).
PARTS = {
    **dict.fromkeys(("timesteps", "loss"), "noise"),
    **dict.fromkeys(("optimizer", "schedule"), "optimizer"),
    **dict.fromkeys(("ema", "regularizers"), "keep"),
    **dict.fromkeys(("tread", "rollout", "crepa"), "further"),
    **dict.fromkeys(("", "loop", "saving"), "rhythm"),
    **dict.fromkeys(("track", "parallel"), "around"),
    "adapter": "adapter",
    "previews": "previews",
}


def widget_input(item: Option, widget: Widget, choices: Sequence[str] | None = None) -> Any:
    """The input of one option."""
    common: dict[str, Any] = {
        "default": widget.shows(item.default),
        "tooltip": item.tooltip,
        "optional": not widget.is_required,
        "advanced": widget.advanced or None,
    }
    part = PARTS.get(item.group)
    if widget.node == TRAIN and widget.advanced and part:
        common["extra_dict"] = {"wan_train_part": part}
    options = list(choices or widget.words or item.choices)
    kind = item.kinds[0]
    if options:
        return io.Combo.Input(widget.name, options=options, **common)
    if kind is bool:
        return io.Boolean.Input(widget.name, **common)
    if kind is str:
        return io.String.Input(widget.name, multiline=widget.multiline, **common)
    low, high = _range(item, widget)
    if kind is int:
        step = None if widget.step is None else int(widget.step)
        seed = {"control_after_generate": False} if widget.name == "seed" else {}
        return io.Int.Input(widget.name, min=int(low), max=int(high), step=step, **seed, **common)
    return io.Float.Input(
        widget.name, min=float(low), max=float(high), step=widget.step, round=widget.round, **common
    )  # fmt: skip


def _range(item: Option, widget: Widget) -> tuple[float, float]:
    low, high = item.range
    return (low if widget.least is None else widget.least), (high if widget.most is None else widget.most)

"""Checks what a node is given before it does anything.

The page sends what its widgets allow. A prompt that a program sends may hold anything: a dictionary on a wire, a text for
a number. The host checks ranges and lists of values that stand in the prompt, but neither what stands there in the place
of a wire, nor values that come over a wire. Here both are: each is one sentence that names the input.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from comfy_api.latest import io

from ..core.data.types import Dataset, LatentCache, TextCache
from ..core.errors import ConfigError
from ..core.names import in_short, kind_of
from ..core.recipe.recipe import widgets_of
from .advice import advising
from .report_file import keep_shown
from .sockets import DitHandle, LoraHandle, PairHandle

Execute = TypeVar("Execute", bound=Callable[..., Any])

# Type of a wire -> class of what travels on it, and where to get it.
_HANDLES: dict[str, tuple[type, str]] = {
    "WAN_DIT": (DitHandle, "Load Wan DiT"),
    "WAN_DATASET": (Dataset, "Dataset from Folder"),
    "WAN_LATENTS": (LatentCache, "Cache Latents"),
    "WAN_TEXT": (TextCache, "Cache T5"),
    "WAN_LORA": (LoraHandle, "Train LoRA Stage or LoRA from File"),
    "WAN_LORA_PAIR": (PairHandle, "Merge Stages"),
    "IMAGE": (torch.Tensor, "a node that gives an IMAGE"),
}
# The host's own: packs wrap its classes, so what counts is what we use of them.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "VAE": ("first_stage_model", "latent_channels"),
    "CLIP": ("cond_stage_model", "tokenize"),
    "CLIP_VISION": ("encode_image", "model"),
    "MODEL": ("model", "clone"),
}
_LISTS_OF_FILES = (
    "folder",
    "model_name",
    "tuned_model",
    "name",
    "lora_file",
    "recovery_adapter",
    "model_folder",
    "high_run",
    "low_run",
)  # looked up where they are used
MAX_CURVE_POINTS = 256
_NUMBERS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "INT": (int, "a whole number"),
    "FLOAT": ((int, float), "a number"),
}


def checked(execute: Execute) -> Execute:
    """`execute` of a node, which refuses inputs that are not of the kinds that its schema says. What it reports is kept."""
    names = list(inspect.signature(execute).parameters)[1:]

    def check(cls: Any, arguments: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        check_inputs(cls, {**dict(zip(names, arguments, strict=False)), **inputs})

    if inspect.iscoroutinefunction(execute):

        @functools.wraps(execute)
        async def run_async(cls: Any, *arguments: Any, **inputs: Any) -> Any:
            check(cls, arguments, inputs)
            with advising():
                output = await execute(cls, *arguments, **inputs)
            keep_shown(output)
            return output

        return run_async  # type: ignore[return-value]

    @functools.wraps(execute)
    def run(cls: Any, *arguments: Any, **inputs: Any) -> Any:
        check(cls, arguments, inputs)
        with advising():
            output = execute(cls, *arguments, **inputs)
        keep_shown(output)
        return output

    return run  # type: ignore[return-value]


def check_inputs(node: type[io.ComfyNode], values: Mapping[str, Any]) -> None:
    """ConfigError for the first of `values` that is not what the node's schema says of it."""
    schema = node.SCHEMA or node.define_schema()
    options = {widget.name: widget for _, widget in widgets_of(schema.node_id)}
    for item in schema.inputs:
        if item.id in values and not (item.optional and values[item.id] is None):
            value, widget = values[item.id], options.get(item.id)
            check = _check_growing if item.get_io_type() == io.Autogrow.io_type else _check
            check(item, widget.shows(widget.meaning(value)) if widget and widget.is_old(value) else value)


def check_known(node: type[io.ComfyNode], values: Mapping[str, Any]) -> None:
    """As `check_inputs`, for the host's check of a prompt, where None stands for what will come over a wire."""
    check_inputs(node, {name: value for name, value in values.items() if value is not None})


def _check(item: Any, value: Any) -> None:
    kind = item.get_io_type()
    if kind in _HANDLES:
        _check_handle(item.id, value, *_HANDLES[kind])
    elif kind in _ATTRIBUTES:
        if not all(hasattr(value, name) for name in _ATTRIBUTES[kind]):
            raise ConfigError(f"{item.id} must be connected to a node that gives a {kind}, but it is {kind_of(value)}.")
    elif kind in _NUMBERS:
        _check_number(item, value, *_NUMBERS[kind])
    elif kind == "BOOLEAN":
        if not isinstance(value, bool):
            raise ConfigError(f"{item.id} must be true or false, but it is {kind_of(value)}.")
    elif kind == "CURVE":
        _check_curve(item.id, value)
    else:
        _check_text(item, value)


def _check_text(item: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{item.id} must be a text, but it is {kind_of(value)}.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{item.id} holds half a character (a lone surrogate), which no file can: write it again.")
    if item.get_io_type() == "COMBO" and item.id not in _LISTS_OF_FILES and value not in item.options:
        raise ConfigError(f"{item.id} is '{in_short(value)}': choose one of {', '.join(map(str, item.options))}.")


def _check_growing(item: Any, value: Any) -> None:
    """Of an input that grows: a table of its wires."""
    if not isinstance(value, dict):
        raise ConfigError(f"{item.id} must be one or more wires, but it is {kind_of(value)}.")
    for name, one in value.items():
        if one is not None:
            _check_handle(f"{item.id}.{name}", one, *_HANDLES[item.template.input.get_io_type()])


def _check_handle(name: str, value: Any, wanted: type, source: str) -> None:
    if not isinstance(value, wanted):
        raise ConfigError(f"{name} must be connected to {source}, but it is {kind_of(value)}.")
    if isinstance(value, torch.Tensor) and (value.ndim != 4 or not value.numel()):
        raise ConfigError(
            f"{name} must be pictures, [number, height, width, 3], but it has the shape {list(value.shape)}."
        )


def _check_curve(name: str, value: Any) -> None:
    """The host's own object, or what its widget saves: points, each two finite numbers."""
    if hasattr(value, "interp_array"):
        return
    points = value.get("points") if isinstance(value, Mapping) else value
    is_list = isinstance(points, (list, tuple))
    if not is_list or not 2 <= len(points) <= MAX_CURVE_POINTS or not all(map(_is_point, points)):
        raise ConfigError(f"{name} must be a curve of 2 to {MAX_CURVE_POINTS} points, but it is {kind_of(value)}.")


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, (list, tuple))
        and len(point) == 2
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in point)
    )


def _check_number(item: Any, value: Any, wanted: type | tuple[type, ...], words: str) -> None:
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ConfigError(f"{item.id} must be {words}, but it is {kind_of(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{item.id} is {value}, which is no number to work with: give one from {_span(item)}.")
    if (item.min is not None and value < item.min) or (item.max is not None and value > item.max):
        raise ConfigError(f"{item.id} is {in_short(value)}, but it must lie in {_span(item)}.")


def _span(item: Any) -> str:
    is_multiple = item.step and item.step > 1 and item.min % item.step == 0
    return f"{item.min:g} to {item.max:g}" + (f", a multiple of {item.step:g}" if is_multiple else "")

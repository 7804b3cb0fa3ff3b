"""The words of plans and reports, taken from the options' declarations: a name or a sentence is changed there alone."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..settings.loop import LoopOptions
from ..settings.memory import MemoryOptions
from ..settings.option import Option, options_of
from ..settings.parallel import ParallelOptions
from ..settings.plain import PLAIN
from .plan import Plan

# What no option says: on, off.
_OF_PLANS_ALONE = {"keep_transposed": ("weights kept transposed too", "weights not kept transposed")}
_DECIDED_BEFORE = ("precision", "compile", "cuda_graphs")  # told apart from a plan's line


def option_of(name: str) -> Option:
    """The declaration behind a field of `Plan`, or the option of this name. KeyError for what is none."""
    if name == "shards":  # a plan holds the number of GPUs
        name = "base"
    declared = {
        item.name: item for group in (LoopOptions, ParallelOptions, MemoryOptions) for item in options_of(group)
    }
    return declared[name]


def label(name: str) -> str:
    """What a person knows an option by: the name of its widget."""
    return option_of(name).label


def words_of(name: str, value: Any, blocks: int | None = None) -> str:
    """A field of a plan in words. `blocks`: those of the model, "38 of 40 blocks"; None: not said."""
    if name in _OF_PLANS_ALONE:
        return _OF_PLANS_ALONE[name][0 if value else 1]
    item = option_of(name)
    value = 0 if name == "shards" and value == 1 else value
    if blocks is not None and item.unit == "blocks" and value:
        return item.in_plan(f"{value} of {blocks}")
    return item.in_plan(value)


def told(plan: Plan, blocks: int) -> Iterator[str]:
    """What a plan's line says beside sizes and times: all that is not as it is in a model that is held plainly."""
    for field in fields(Plan):
        value = getattr(plan, field.name)
        is_plain = value == PLAIN.get(field.name, field.default)
        is_idle = field.name == "stream_from" and not plan.streamed_blocks
        if field.name not in _DECIDED_BEFORE and not is_plain and not is_idle:
            yield words_of(field.name, value, blocks)


def changed(old: Plan, new: Plan) -> str:
    """The fields that differ, in words for their new values; "" if none does."""
    return ", ".join(words_of(name, getattr(new, name)) for name in differences(old, new))


def differences(old: Plan, new: Plan) -> list[str]:
    """Names of the fields that differ."""
    return [field.name for field in fields(Plan) if getattr(old, field.name) != getattr(new, field.name)]

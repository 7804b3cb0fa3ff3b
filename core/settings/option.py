"""An option is declared once, where its field stands: `rank: int = option(16, help=..., least=1, most=4096, ...)`.

From the declaration come the node's widget and tooltip, the recipe's tables and docs/job.toml, docs/options.json, the
tables of the help pages, the checks, the short names of `--set`, and the key of a run. How to add one: docs/how-to-add.md.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, Literal, cast

from ..errors import ConfigError
from ..limits import shown_number, shown_value
from ..methods import method_help, method_names, method_uses
from ..paths import shown
from ..serial import AUTO

# The nodes that have options as widgets.
DATASET, LATENTS, MODEL, TRAIN = "DatasetFromFolder", "CacheLatents", "LoadWanDiT", "TrainLoRAStage"
TEXT = "CacheT5"

LARGE = 10**9  # the most of a number that names no other: no option makes sense beyond it, and none overflows below
UNSET: Any = object()
Others = Mapping[str, tuple[Any, ...]]  # option of the same group -> values
_KEY = "option"


@dataclass(frozen=True)
class Widget:
    """The input of an option on a node."""

    node: str
    name: str
    place: (
        int  # among the options of the node; a new one is the last of them, so that saved workflows keep their values
    )
    advanced: bool = True
    is_required: bool = False  # as those of the first version: prompts from before another came do not hold it
    least: float | None = None  # where the widget's range is narrower than that of the option
    most: float | None = None
    step: float | None = None
    round: float | Literal[False] | None = None
    multiline: bool = False
    values: tuple[tuple[Any, Any], ...] = ()  # (value of the widget, value of the option), where they differ
    old: tuple[tuple[Any, Any], ...] = ()  # the same for values that workflows of earlier versions hold

    def meaning(self, value: Any) -> Any:
        """The option's value for a value of the widget, also one of an earlier version."""
        return next((meant for known, meant in (*self.values, *self.old) if _is_same(known, value)), value)

    def shows(self, value: Any) -> Any:
        """The widget's value for a value of the option; the inverse of `meaning`."""
        return next((known for known, meant in self.values if _is_same(meant, value)), value)

    def is_old(self, value: Any) -> bool:
        """Whether workflows of earlier versions hold this value, and the widget no longer has it."""
        return any(_is_same(known, value) for known, _ in self.old)

    @property
    def words(self) -> tuple[str, ...]:
        """The choices of a widget that shows words; () for one that shows numbers, or the option's own values."""
        return tuple(known for known, _ in self.values if isinstance(known, str))


def _is_same(one: Any, other: Any) -> bool:
    """Equal, and not because True is 1."""
    return type(one) is type(other) and one == other


SWITCH = ((AUTO, None), ("on", True), ("off", False))  # `values` of a switch that can be left to the program


@dataclass(frozen=True, kw_only=True)
class Option:
    """Everything that is declared of one option. `group`, `name` and `annotation` come from its field."""

    help: str  # one sentence: tooltip, help page, docs/job.toml
    more: str = ""  # further sentences, for tooltip and help page
    page: str = ""  # further sentences, for the help page alone
    least: float | None = None  # the range that is checked; numbers have 0 to LARGE where nothing is said
    above: float | None = None  # in place of `least`: the value itself is refused
    most: float | None = None
    below: float | None = None  # in place of `most`
    unit: str = ""  # "steps", "GB", "blocks"
    zero: str = ""  # what 0 means: "no previews"
    hint: str = ""  # the end of the sentence that refuses a number: "; the usual choice is the rank"
    values: tuple[str, ...] = ()  # of a text or a list of texts; a Literal names its own
    methods: str = ""  # a folder of core whose files are further values: "optimizers"
    widget: Widget | None = None
    in_plans: str = (
        ""  # how plans and reports tell it: "block swap of {} blocks"; {} is the value as its widget shows it
    )
    in_plans_off: str = ""  # and where it is off, 0 or the least: "no block swap"
    born: int = 1  # 1: the key of a run always holds it; later: only where it differs from `at_birth`
    at_birth: Any = UNSET  # the default when it was born, which stays as it is when the default changes
    in_key: bool = True  # whether it decides the trained weights
    key_holds: Any = UNSET  # for one of birth 1 that does not: what keys hold in its place
    in_recipe: bool = True
    only_with: Others = field(default_factory=dict[str, tuple[Any, ...]])  # it has an effect with these of its group
    not_with: Others = field(default_factory=dict[str, tuple[Any, ...]])  # it has none with these
    musubi: str = ""  # its name in musubi-tuner; a leading ! says that the meaning is reversed
    aitoolkit: str = ""
    simpletuner: str = ""
    diffusion_pipe: str = ""
    group: str = ""
    name: str = ""
    annotation: Any = None
    default: Any = UNSET

    def __post_init__(self) -> None:
        assert self.born == 1 or self.at_birth is not UNSET or not self.in_key, "a later option says its at_birth"

    @property
    def place(self) -> str:
        """Where recipes and jobs have it: adapter.rank, epochs."""
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def label(self) -> str:
        """What sentences call it: the name of its widget, else its place."""
        return self.widget.name if self.widget else self.place

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that a value can have, without None."""
        is_union = typing.get_origin(self.annotation) in (typing.Union, types.UnionType)
        found = typing.get_args(self.annotation) if is_union else (self.annotation,)
        return tuple(kind for kind in found if kind is not type(None))

    @property
    def can_be_auto(self) -> bool:
        """Whether None is a value: left to the program."""
        return type(None) in typing.get_args(self.annotation)

    @property
    def is_number(self) -> bool:
        """Whether its values are whole or other numbers."""
        return self.kinds in ((int,), (float,))

    @property
    def is_list(self) -> bool:
        """Whether its value is a list of texts."""
        return typing.get_origin(self.kinds[0]) is tuple

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that can be chosen; () where anything in range can."""
        of_literal = typing.get_args(self.kinds[0]) if typing.get_origin(self.kinds[0]) is Literal else ()
        first = self.values or of_literal
        found = method_names(self.methods) if self.methods else ()
        return (*first, *(name for name in found if name not in first))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest number; one that is itself refused, where `above` or `below` says so."""
        low = self.above if self.above is not None else (0 if self.least is None else self.least)
        return low, self.below if self.below is not None else (LARGE if self.most is None else self.most)

    def in_plan(self, value: Any) -> str:
        """What a plan or a report says of this value."""
        is_least = self.is_number and value == (self.least or 0)
        if not value or value == "off" or is_least:
            return self.in_plans_off
        said = self.in_plans.format(self.widget.shows(value) if self.widget else value)
        return said.replace("blocks", "block") if self.unit == "blocks" and value == 1 else said

    @property
    def tooltip(self) -> str:
        """The help of its widget."""
        shows_zero = self.zero and not (self.widget and self.widget.values)  # else `more` says what its numbers mean
        methods = [f"{name}: {clause}." for name, clause in method_help(self.methods).items()] if self.methods else []
        return " ".join(filter(None, (self.help, self.more, *methods, f"0: {self.zero}." if shows_zero else "")))

    def read(self, text: str) -> Any:
        """The value that a person wrote; ConfigError for what is none of its type."""
        if text == AUTO and self.can_be_auto:
            return None
        kind = self.kinds[0]
        if kind is bool:
            words = {
                "true": True,
                "yes": True,
                "on": True,
                "1": True,
                "false": False,
                "no": False,
                "off": False,
                "0": False,
            }
            if text in words:
                return words[text]
        elif kind not in (int, float):
            return text.split(",") if self.is_list else text
        else:
            try:
                return kind(text)
            except ValueError:
                pass
        raise ConfigError(f"{self.label} is '{shown(text)}', which is no value of it: {self.help}")

    def check(self, value: Any) -> None:
        """ConfigError for a number out of range, or for a text that is none of the choices."""
        if isinstance(value, bool) or (value is None and self.can_be_auto):
            return
        if isinstance(value, (int, float)):
            self._check_number(value)
        elif self.values or self.methods:  # a Literal is checked where text becomes options
            for one in cast(tuple[str, ...], value) if self.is_list else (value,):
                if one not in self.choices:
                    choices = ", ".join(map(str, self.choices))
                    entry = f"has the unknown entry '{shown(one)}'" if self.is_list else f"is '{shown(one)}'"
                    raise ConfigError(f"{self.label} {entry}: choose one of {choices}.")

    def _check_number(self, value: float) -> None:
        low, high = self.range
        is_low = not (value > low if self.above is not None else value >= low)  # also of what is no number
        is_high = not (value < high if self.below is not None else value <= high)
        if is_low and self.zero:
            wanted = f"0 ({self.zero}) or {f'a number of {self.unit}' if self.unit else 'more'}"
        elif is_low:
            wanted = f"{'above' if self.above is not None else 'at least'} {shown_number(low)}"
        elif is_high:
            wanted = f"{'below' if self.below is not None else 'at most'} {shown_number(high)}"
        else:
            return
        raise ConfigError(f"{self.label} must be {wanted}, got {shown_value(value)}{self.hint}.")


def option(default: Any = MISSING, /, **facts: Any) -> Any:
    """The field of an option. `default` and `facts`: those of `Option`; without a default it must be given."""
    return field(default=default, metadata={_KEY: Option(default=UNSET if default is MISSING else default, **facts)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options, each of which is checked when the group is made."""

    group: ClassVar[str] = ""

    def __init_subclass__(cls, *, group: str | None = None) -> None:
        if group is not None:
            cls.group = group

    def __post_init__(self) -> None:
        for item in options_of(type(self)):
            item.check(getattr(self, item.name))


@functools.cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The options that a group declares, in order; not those of groups inside it."""
    hints = typing.get_type_hints(cls)
    group = getattr(cls, "group", "")
    return tuple(
        dataclasses.replace(item.metadata[_KEY], group=group, name=item.name, annotation=hints[item.name])
        for item in dataclasses.fields(cls)
        if _KEY in item.metadata
    )


@functools.cache
def groups_of(cls: type) -> Mapping[str, type]:
    """The groups inside a dataclass, by the names of their fields; also one of which there may be several."""
    hints = typing.get_type_hints(cls)
    kinds = {item.name: (*typing.get_args(hints[item.name]), hints[item.name])[0] for item in dataclasses.fields(cls)}
    return {name: kind for name, kind in kinds.items() if hasattr(kind, "group")}


def all_options(cls: type) -> Iterator[Option]:
    """The options of a dataclass, and of the groups inside it."""
    yield from options_of(cls)
    for group in groups_of(cls).values():
        yield from all_options(group)


def key_values(group: Options) -> dict[str, Any]:
    """What the key of a run holds of a group: options of birth 1, and later ones that differ from their first default.

    An option that came later changes no key of a run from before it, and a default that changes changes none either.
    """
    held: dict[str, Any] = {}
    for item in options_of(type(group)):
        value = getattr(group, item.name)
        if not item.in_key and item.key_holds is not UNSET:
            value = item.key_holds
        if (item.in_key or item.key_holds is not UNSET) and (item.born == 1 or value != item.at_birth):
            held[item.name] = value
    return held


def without_effect(group: Options) -> list[str]:
    """A sentence for each option that was chosen away from its default, and has no effect with the others of its group."""
    found: list[str] = []
    declared = {item.name: item for item in options_of(type(group))}
    for item in declared.values():
        if getattr(group, item.name) == item.default:
            continue
        for others, is_of in ((item.only_with, True), (item.not_with, False)):
            for name, values in others.items():
                value, folder = getattr(group, name), declared[name].methods
                is_used = is_of and folder and item.name in method_uses(folder, value)
                if (value in values) != is_of and not is_used:
                    belongs = f"; it belongs to {' and '.join(map(_word, values))}" if is_of else ""
                    found.append(f"{item.label} has no effect with {declared[name].label} {_word(value)}{belongs}.")
    return found


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)

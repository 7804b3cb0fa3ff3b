"""How a LoRA is taught: every option of a training, by its dotted name ("adapter.rank"), from and to text."""

import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, reduce
from operator import attrgetter
from typing import Any, Literal

from ...core.errors import ConfigError
from ...core.serial import AUTO, from_dict, kind_word, to_dict
from ...core.settings.loop import LoopOptions
from ...core.settings.memory import MemoryOptions
from ...core.settings.optimizer import OptimizerOptions
from ...core.settings.stage import StageSettings
from .family import STAGES

ELSEWHERE = ("device", "epochs")  # given by --device and --steps


@dataclass(frozen=True, kw_only=True)
class Settings(StageSettings):
    """How a concept is taught. `loop.seed` draws the clips too."""

    clips: int = 12  # of the concept
    others: int = 0  # of what the base knows
    stages: tuple[Literal["high", "low"], ...] = STAGES
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(learning_rate=1e-3))
    loop: LoopOptions = field(default_factory=lambda: LoopOptions(steps=150, batch_size=4, seed=1))
    memory: MemoryOptions = field(default_factory=lambda: MemoryOptions(checkpointing=False))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clips < 1:
            raise ConfigError(f"clips must be at least 1, got {self.clips}.")
        if self.others < 0:
            raise ConfigError(f"others must be at least 0, got {self.others}.")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ConfigError(f"stages names one or both of {', '.join(STAGES)}, each once; got {self.stages}.")


@cache
def field_hints(cls: type = Settings, prefix: str = "") -> dict[str, Any]:
    """The types of all fields that hold a value, by dotted name; not to be changed."""
    found = {}
    hints = typing.get_type_hints(cls)
    for name, hint in ((item.name, hints[item.name]) for item in fields(cls)):
        found |= field_hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}
    return {name: hint for name, hint in found.items() if name not in ELSEWHERE}


def flat(settings: Settings) -> dict[str, str]:
    """Values by dotted name, written as `changed` reads them."""
    values = {name: attrgetter(name)(settings) for name in field_hints()}
    texts = {name: "+".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
    return {name: AUTO if values[name] is None else text for name, text in texts.items()}


def differing(settings: Settings) -> dict[str, str]:
    """As `flat`, but what is as the defaults say is left out, so that an option that is new changes nothing."""
    usual, own = flat(Settings()), flat(settings)
    return {name: own[name] for name in own if own[name] != usual[name]}


def changed(settings: Settings, name: str, text: str) -> Settings:
    """The settings with the field `name` ("adapter.rank") set to what `text` says; lists are written a+b.

    ConfigError if there is no such field, or the text is no value for it.
    """
    return all_changed(settings, [(name, text)])


def all_changed(settings: Settings, changes: Iterable[tuple[str, str]]) -> Settings:
    """As `changed`, with several names and texts, one after another; what they say is checked together."""
    hints, data = field_hints(), to_dict(settings)
    for name, text in changes:
        if name not in hints:
            raise ConfigError(f"there is no setting '{name}'; the settings are {', '.join(hints)}.")
        *groups, last = name.split(".")
        reduce(dict.__getitem__, groups, data)[last] = _value(hints[name], text, name)
    return from_dict(Settings, data, "settings")


def _value(hint: Any, text: str, name: str) -> Any:
    """Text as a plain JSON value of the type; `from_dict` checks what it means."""
    if type(None) in typing.get_args(hint):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        if text == AUTO:
            return None
    if typing.get_origin(hint) is tuple:
        return text.split("+")
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError as error:
            raise ConfigError(f"{name} is '{text}'; it must be {kind_word(hint)}.") from error
    return text

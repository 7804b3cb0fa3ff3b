"""Optimizers of other trainers: their names and class paths, what they take by themselves, and their further arguments."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..optimizers import OPTIMIZERS
from .answers import Answer, Context, Rule, SetupOption, either, mapped, not_needed, not_supported
from .declared import choice_of, number

_OF_TORCH = "torch.optim"


@dataclass(frozen=True)
class Named:
    """What a name stands for."""

    name: str  # ours
    own: Mapping[str, float] = field(default_factory=dict)  # what it takes where nothing is said, and ours does not
    why: str = ""  # how it differs
    path: str = ""  # of its class, for custom


_LION = {"beta2": 0.99, "weight_decay": 0.0}  # of bitsandbytes, lion-pytorch and optimi
OPTIMI = {"beta2": 0.99, "eps": 1e-6}
# Classes by their names in small letters, whatever package they are of, with that package's own values.
CLASSES = {
    "adamw": Named("adamw"),
    "adamw8bit": Named("adamw8bit"),
    "pagedadamw": Named("paged_adamw"),
    "pagedadamw8bit": Named("paged_adamw8bit"),
    "lion": Named("lion", _LION),
    "lion8bit": Named("lion8bit", _LION),
    "pagedlion": Named("paged_lion", _LION),
    "pagedlion8bit": Named("paged_lion8bit", _LION),
    "ademamix": Named("ademamix"),
    "ademamix8bit": Named("ademamix8bit"),
    "prodigy": Named("prodigy", {"weight_decay": 0.0}),
    "adamwschedulefree": Named("schedulefree", {"weight_decay": 0.0}),
}
_SAME_PACKAGES = ("bitsandbytes.optim", "lion_pytorch", "prodigyopt", "schedulefree", "pytorch_optimizer")
_OF_OPTIONS = ("lr", "weight_decay", "eps", "betas")  # arguments with options of their own


def of_class(path: str, *, package: str = _OF_TORCH) -> Named:
    """A class by its path: one of ours that does the same, else custom. `package`: of a name without a dot."""
    module, _, name = path.rpartition(".")
    module = module or package
    is_same = module.startswith(_SAME_PACKAGES) or f"{module}.{name}".lower() == "torch.optim.adamw"
    if is_same and (found := CLASSES.get(name.lower())) is not None:
        return found
    path = f"{module}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"there is no optimizer {path} here: adamw is taken. Its learning rate may be another.")
    allowed = f" The package {module.split('.')[0]} has to be allowed on your machine: see optimizer_class."
    return Named("custom", {}, "it is used by its class." + ("" if module == _OF_TORCH else allowed), path)


def answer(found: Named | None, word: str, said: Collection[str]) -> Answer:
    """The optimizer, and those values of its own that the files do not say; `said`: the options that they say."""
    if found is None:
        return not_supported(f"there is no optimizer {word} here: adamw is taken. Its learning rate may be another.")
    values: dict[str, Any] = {"optimizer.name": found.name}
    values |= {f"optimizer.{name}": value for name, value in found.own.items() if name not in said}
    if found.path:
        values["optimizer.path"] = found.path
    why = found.why
    if not why and len(values) > 1:
        why = "with what it takes there by itself."
    return Answer("changed" if found.why or found.path else "mapped", values, why)


def by_name(word: str, names: Mapping[str, Named]) -> Named | None:
    """What a trainer's own name stands for; None for one that can't be had here."""
    if (found := names.get(word.lower())) is not None:
        return found
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    ours = choice_of("optimizer.name", word)
    return CLASSES.get(plain) or (Named(ours) if ours not in (None, "custom") else None)


def said_by(context: Context, names: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The options that the files say, by the trainer's names for them."""
    return {option for key, options in names.items() if context.has(key) for option in options}


def arguments(prefix: str, named: Callable[[Context], Named | None], *, without: Collection[str] = ()) -> Rule:
    """A rule for a further argument of the optimizer, whose options begin with `prefix`: all of them are one text here.

    `without`: names after the prefix that are no arguments of the class.
    """

    def rule(context: Context, given: SetupOption) -> Answer:
        found = named(context)
        name = given.key.removeprefix(prefix)
        if found is None:
            return not_supported("its optimizer is not here.")
        if not _takes(found, name):
            return not_supported(f"the optimizer {found.name} takes no {name} here.")
        keys = [item for item in context.given if item.key.startswith(prefix)]
        words = {item.key.removeprefix(prefix): item.value for item in keys}
        text = ", ".join(
            f"{inner}={_plain(value)!r}"
            for inner, value in words.items()
            if inner not in without and _takes(found, inner)
        )
        return mapped(optimizer__args=text)

    return rule


def _takes(found: Named, name: str) -> bool:
    if not name.isidentifier() or name in _OF_OPTIONS:
        return False
    method = OPTIMIZERS.get(found.name)
    return found.name == "custom" or ("args" in method.uses and name in method.arguments)


def _plain(value: Any) -> Any:
    """A value that may be written as a text."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    found = number(value)
    return value if found is None else found


def unread(why: str) -> Rule:
    """A rule for an option that the other trainer itself does not read."""
    return lambda _context, _given: not_needed(why)


def rate(given: SetupOption, *, is_own: bool) -> Answer:
    """A learning rate; `is_own`: AI-Toolkit's for optimizers that find theirs, where one below 0.1 counts as 1."""
    found = number(given.value)
    if found is None:
        raise ConfigError(f"'{given.value}' is no number.")
    if is_own and found < 0.1:
        return either("AI-Toolkit takes 1 for this optimizer, which finds its own.", optimizer__learning_rate=1.0)
    return mapped(optimizer__learning_rate=float(found))

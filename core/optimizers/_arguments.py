"""The text of `optimizer_args` as arguments of an optimizer: names and plain values, nothing that is run."""

import ast
import inspect
import math
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..paths import shown
from ..settings.optimizer import OptimizerOptions

MAX_TEXT = 2000
_HOW = "write name=value with commas between, such as d_coef=2, betas=(0.9, 0.99)."


@dataclass(frozen=True)
class ArgumentRule:
    """What the value of an argument must be."""

    wanted: str  # in words, after "it must be"
    is_right: Callable[[Any], bool]


def number(*, least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> ArgumentRule:
    """A finite number in this range."""
    low = f" above {above:g}" if above > -math.inf else f" of at least {least:g}"
    end = f" and below {below:g}" if below < math.inf else ""
    return ArgumentRule(f"a number{low}{end}", lambda v: _is_number(v) and least <= v < below and v > above)


def whole(least: int, most: int = 10**9) -> ArgumentRule:
    """A whole number in this range."""
    end = f" to {most}" if most < 10**9 else " on"
    return ArgumentRule(f"a whole number from {least}{end}", lambda v: type(v) is int and least <= v <= most)


FLAG = ArgumentRule("True or False", lambda v: isinstance(v, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Arguments:
    """The arguments that an optimizer takes in `optimizer_args`."""

    rules: Mapping[str, ArgumentRule]

    def given(self, options: OptimizerOptions) -> dict[str, Any]:
        """Those of `options`; ConfigError for others, and for values that are out of range."""
        found = read_arguments(options.args, self.rules, f"the optimizer {options.name}")
        for name, value in found.items():
            rule = self.rules[name]
            if not rule.is_right(value):
                raise ConfigError(f"optimizer_args has {name}={shown(repr(value))}: it must be {rule.wanted}.")
        return found

    def problem(self, options: OptimizerOptions) -> str:
        """Why `given` would refuse; "" if it would not."""
        try:
            self.given(options)
        except ConfigError as error:
            return str(error)
        return ""


def read_arguments(text: str, allowed: Collection[str], what: str) -> dict[str, Any]:
    """The arguments in `text`, which commas or spaces separate; values are numbers, texts, True, False, None, or tuples.

    ConfigError, with the names that there are, for one that is not among `allowed`, and for what is no plain value.
    `what`: the optimizer, as sentences name it.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"optimizer_args is a text of {len(text)} characters: {MAX_TEXT} are the most.")
    try:
        found = _by_commas(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = _by_spaces(text)
    for name in found:
        if name not in allowed:
            known = f"choose among {', '.join(sorted(allowed))}" if allowed else "it takes none"
            raise ConfigError(f"optimizer_args has '{shown(name)}', which {what} does not take: {known}.")
    return found


def arguments_of(make: Callable[..., Any], *, without: Collection[str] = ()) -> tuple[str, ...]:
    """The names of the arguments that a class takes by name, the first (the parameters) and those of `without` left out."""
    _first, *others = inspect.signature(make).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(item.name for item in others if item.kind in named and item.name not in without)


def _by_commas(text: str) -> dict[str, Any]:
    call = ast.parse(f"f({text}\n)", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise ValueError(text)
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in found:
            raise ValueError(text)
        found[keyword.arg] = ast.literal_eval(keyword.value)
    return found


def _by_spaces(text: str) -> dict[str, Any]:
    """As musubi-tuner's command line has them."""
    found: dict[str, Any] = {}
    try:
        for part in shlex.split(text):
            name, equals, value = part.partition("=")
            if not equals or not name.isidentifier() or name in found:
                raise ValueError(part)
            found[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"optimizer_args is '{shown(text)}', which can't be read: {_HOW}") from error
    return found

"""Methods by name: a folder holds one kind of method, and each file in it is one method of that kind.

The name that people choose is the file's. A file `lion.py` in the folder of optimizers defines `METHOD`, an instance of
the kind's dataclass, and nothing else has to be told of it: settings offer it, checks accept it, documents list it.
"""

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import ConfigError
from .paths import shown

M = TypeVar("M")


@functools.cache  # a planner asks some ten thousand times
def method_names(folder: str) -> tuple[str, ...]:
    """Names of the methods in a folder of `core`, such as "optimizers"; none of them is imported.

    Files whose names begin with an underscore are no methods.
    """
    path = Path(__file__).parent.joinpath(*folder.split("."))
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(path)]) if not found.name.startswith("_")))


def method_help(folder: str) -> dict[str, str]:
    """What each method in a folder says of itself, one clause each, by its name."""
    return {name: _load(folder, name, object).help for name in method_names(folder)}


def method_uses(folder: str, name: str) -> tuple[str, ...]:
    """Options that a method says it uses, of those that other methods of its kind do not: `uses` of its dataclass."""
    return getattr(_load(folder, name, object), "uses", ()) if name in method_names(folder) else ()


@dataclass(frozen=True)
class Methods(Generic[M]):
    """All methods of one kind."""

    kind: type[M]
    word: str  # what one is called in a sentence: "optimizer"
    folder: str  # below `core`: "optimizers"

    @property
    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return method_names(self.folder)

    def get(self, name: str) -> M:
        """The method called `name`; ConfigError, with the names that there are, for any other."""
        if name not in self.names:
            raise ConfigError(f"the {self.word} '{shown(name)}' is not known: choose one of {', '.join(self.names)}.")
        return _load(self.folder, name, self.kind)


@functools.cache
def _load(folder: str, name: str, kind: type[Any]) -> Any:
    module: Any = importlib.import_module(f".{folder}.{name}", __package__)
    method = module.METHOD
    assert isinstance(method, kind), f"{module.__name__}.METHOD is a {type(method).__name__}, not a {kind.__name__}"
    return method

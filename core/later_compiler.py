"""PyTorch's compiler is imported when something is asked of it, and not by the first optimizer.

Every optimizer imports `torch._dynamo`, to ask it for two things that do nothing outside of compiled code: to break a graph,
and to leave a function uncompiled. Gradient checkpointing reads one of its settings. That import takes about as long as all of
PyTorch beside it. In a process of ours something else stands in its place, which does these, and gives way to the compiler
itself when anything else is asked.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"
_ATTRIBUTE = _NAME.rpartition(".")[2]  # of torch
_CONFIG = f"{_NAME}.config"  # a module that imports no other of the compiler
_MARK = "__dynamo_disable"  # torch keeps here what it was given in a function's place


def import_compiler_later() -> None:
    """Let the compiler be imported when it is needed, unless it is there already."""
    if _NAME in sys.modules:
        return
    stand_in = _Compiler()
    sys.modules[_NAME] = stand_in
    setattr(torch, _ATTRIBUTE, stand_in)
    sys.meta_path.insert(0, stand_in.finder)


class _Compiler(ModuleType):
    """In the place of the compiler."""

    def __init__(self) -> None:
        super().__init__(_NAME, __doc__)
        self.__path__ = list[str]()  # a package, whose modules `finder` finds
        self.finder = _ModuleFinder(self)
        self._left_uncompiled: list[Any] = []

    def graph_break(self, *_args: object, **_named: object) -> None:
        """Nothing is traced."""

    def disable(self, fn: Any = None, recursive: bool = True, **_named: Any) -> Any:
        """`fn` as it is. The compiler is asked anew once it is there."""
        if fn is None or not recursive:
            return self.give_way().disable(fn, recursive, **_named)
        self._left_uncompiled.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # who looks through all modules
            raise AttributeError(name)
        if name == "config" and sys.modules.get(_NAME) is self:
            return self._load_config()
        return getattr(self.give_way(), name)

    def _load_config(self) -> Any:
        """The compiler's settings alone; the compiler, imported later, takes the same module for its own."""
        place = Path(torch.__file__).parent / _ATTRIBUTE / "config.py"
        spec = importlib.util.spec_from_file_location(_CONFIG, place)
        assert spec is not None, "it is a file of Python code"
        assert spec.loader is not None, "it is a file of Python code"
        module = importlib.util.module_from_spec(spec)
        sys.modules[_CONFIG] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_CONFIG]
            raise
        self.config = module
        return module

    def give_way(self) -> Any:
        """The compiler, which from now on stands in its own place."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            with suppress(AttributeError):
                delattr(torch, _ATTRIBUTE)
        with suppress(ValueError):
            sys.meta_path.remove(self.finder)
        for fn in self._left_uncompiled:
            vars(fn).pop(_MARK, None)
        self._left_uncompiled.clear()
        compiler = importlib.import_module(_NAME)
        if not hasattr(compiler, "config"):  # it was there before
            vars(compiler)["config"] = sys.modules[_CONFIG]
        return compiler


class _ModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the compiler's modules while something else stands in its place."""

    def __init__(self, stand_in: _Compiler) -> None:
        self._stand_in = stand_in

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module of the compiler, which is imported for that."""
        del path
        if not fullname.startswith(f"{_NAME}."):
            return None
        compiler = self._stand_in.give_way()
        if fullname in sys.modules:  # the compiler has imported it
            return importlib.util.spec_from_loader(fullname, _Given(sys.modules[fullname]))
        return importlib.machinery.PathFinder.find_spec(fullname, compiler.__path__, target)


class _Given(importlib.abc.Loader):
    """Loads a module that is there."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module."""
        del spec
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""
        module.__spec__ = self._spec

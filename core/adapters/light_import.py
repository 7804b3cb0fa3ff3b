"""Importing peft without transformers, which takes ten times as long as peft itself, and without two smaller ones.

peft imports the base classes of transformers' models, to know them when it meets one, and with these come PyTorch's
compiler, its distributed tensors and more. accelerate is for models that it has spread, huggingface_hub for downloads. The
model here is none of them. In a process of ours something else stands in their place while peft is imported: classes that
nothing is an instance of, and functions that say no.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

_PACKAGES = ("transformers", "accelerate", "huggingface_hub")
_HOOKS_OF = "peft.tuners.tuners_utils"
_ASKS_FOR_DTENSORS = "_torch_supports_distributed"  # peft then looks at a module of torch's that transformers imports


def import_peft() -> None:
    """Import peft without transformers and its like, unless they are there already, or peft does not do without them.

    Afterwards whoever imports them gets them. Raises what peft's own import raises.
    """
    has_begun = "transformers" in sys.modules  # whose parts, imported one by one, would keep a stand-in for good
    left_out = () if has_begun else tuple(name for name in _PACKAGES if name not in sys.modules)
    if left_out and "peft" not in sys.modules:
        with suppress(Exception):  # whatever a release of peft does with what it finds: it is imported as usual then
            _import_light(left_out)
            return
    importlib.import_module("peft")


def _import_light(left_out: Sequence[str]) -> None:
    before, finder = set(sys.modules), _StandIns(left_out)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("peft")
        _ask_for_no_dtensors()
        _try_out()
    except BaseException:
        for name in _of_package(set(sys.modules) - before, "peft"):
            del sys.modules[name]
        raise
    finally:
        sys.meta_path.remove(finder)
        for package in left_out:
            for name in _of_package(sys.modules, package):
                del sys.modules[name]


def _of_package(names: Any, package: str) -> list[str]:
    return [name for name in list(names) if name == package or name.startswith(f"{package}.")]


def _ask_for_no_dtensors() -> None:
    hooks = importlib.import_module(_HOOKS_OF)
    if hasattr(hooks, _ASKS_FOR_DTENSORS) and "torch.distributed.tensor" not in sys.modules:
        setattr(hooks, _ASKS_FOR_DTENSORS, False)


def _try_out() -> None:
    """Put a LoRA on a model of one layer."""
    import peft
    from torch import nn, random

    with random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(1, 1))
        peft.inject_adapter_in_model(peft.LoraConfig(r=1, target_modules=["0"]), model)  # pyright: ignore[reportUnknownMemberType]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module in the place of each of these packages and of each of their modules."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module that has whatever is asked of it."""
        del path, target
        is_ours = fullname.partition(".")[0] in self._packages
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """As usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill it in when it is asked."""
        with suppress(PackageNotFoundError):
            module.__version__ = version(module.__name__.partition(".")[0])  # type: ignore[attr-defined]

        def stand_in(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            bases = (Exception,) if name.endswith("Error") else ()  # it may be caught
            made = type(name, bases, {}) if name[:1].isupper() else lambda *_args, **_named: False
            setattr(module, name, made)
            return made

        module.__getattr__ = stand_in  # type: ignore[method-assign]
